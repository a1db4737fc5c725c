// serve.mjs [SITE] [PORT]: a static server for this machine. Its two Cross-Origin headers isolate the page, which lets
// WebAssembly use threads; another host must send them too, or the page uses one thread.

import { createReadStream, existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const [site = fileURLToPath(new URL('site', import.meta.url)), port = '8080'] = process.argv.slice(2);
const TYPES = {
  '.html': 'text/html; charset=utf-8', '.css': 'text/css', '.mjs': 'text/javascript', '.wasm': 'application/wasm',
  '.json': 'application/json', '.md': 'text/plain; charset=utf-8',
};

const server = createServer((request, response) => {
  const name = normalize(`/${request.url.split('?')[0]}`).replace(/\/$/, '/index.html');
  const path = join(site, name);
  if (!existsSync(path) || !statSync(path).isFile()) return response.writeHead(404).end();
  const { size, mtimeMs } = statSync(path);
  const headers = {
    'Content-Type': TYPES[extname(name)] ?? 'application/octet-stream',
    'Cache-Control': 'no-cache',
    ETag: `"${size}-${mtimeMs}"`,
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
  };
  if (request.headers['if-none-match'] === headers.ETag) return response.writeHead(304, headers).end();
  const isCompressed = existsSync(`${path}.gz`) && /\bgzip\b/.test(request.headers['accept-encoding'] ?? '');
  if (isCompressed) headers['Content-Encoding'] = 'gzip';
  response.writeHead(200, headers);
  createReadStream(isCompressed ? `${path}.gz` : path).pipe(response);
});
server.on('error', error => { console.error(error.message); process.exit(1); });
server.listen(Number(port), 'localhost', () => console.log(`http://localhost:${server.address().port}/`));
