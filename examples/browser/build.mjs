// build.mjs BUNDLE [SITE]: puts page, runtime and model into site/, which any static host can serve over https.

import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

process.on('uncaughtException', error => { console.error(error.message); process.exit(1); });
const here = fileURLToPath(new URL('.', import.meta.url));
const [bundle, site = join(here, 'site')] = process.argv.slice(2);
if (!bundle || !existsSync(join(bundle, 'bundle.json'))) throw new Error('usage: build.mjs BUNDLE [SITE]');
const { files, portable } = JSON.parse(readFileSync(join(bundle, 'bundle.json'), 'utf8'));
if (!portable || Object.keys(files).some(name => name.endsWith('.weights')))
  throw new Error(`${bundle} does not fit a browser: export it with --target portable --embed`);

const runtime = 'node_modules/onnxruntime-web/dist';
const FOLDERS = [
  [here, '.', ['index.html', 'style.css', 'page.mjs', 'worker.mjs', 'offline.mjs', '../javascript/blt.mjs']],
  [join(here, runtime), 'ort', ['ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm']],
  [bundle, 'model', ['bundle.json', 'model.onnx']],
];
rmSync(site, { recursive: true, force: true });
for (const [from, to, names] of FOLDERS) {
  mkdirSync(join(site, to), { recursive: true });
  for (const name of names) copyFileSync(join(from, name), join(site, to, name.split('/').at(-1)));
}
// The runtime is 14 MB, and 4 MB compressed; serve.mjs sends what lies compressed beside a file.
const wasm = join(site, 'ort/ort-wasm-simd-threaded.wasm');
writeFileSync(`${wasm}.gz`, gzipSync(readFileSync(wasm)));
