// Continues a text with a portable bundle:
//   ./run BUNDLE PROMPT [--max-bytes N] [--temperature T] [--top-k K] [--top-p P] [--seed S] [--threads N] [--patches]
// The text goes to stdout as it comes; --patches shows the prompt too, and | where a patch starts.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import ort from 'onnxruntime-node';
import { generate, Text } from '../javascript/blt.mjs';

process.on('uncaughtException', error => { console.error(error.message); process.exit(1); });
const number = fallback => ({ type: 'string', default: String(fallback) });
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    'max-bytes': number(256), temperature: number(0), 'top-k': number(256), 'top-p': number(1),
    seed: number(0), threads: number(1), patches: { type: 'boolean', default: false },
  },
});
const [bundle, prompt] = positionals;
if (prompt === undefined) throw new Error('usage: ./run BUNDLE PROMPT [--temperature T ...]');

const opened = performance.now();
const { ends } = JSON.parse(readFileSync(join(bundle, 'bundle.json'), 'utf8')).portable;
const session = await ort.InferenceSession.create(join(bundle, 'model.onnx'), {
  intraOpNumThreads: Number(values.threads),
});

// A character may be several bytes: the decoder gives it when its last byte has come.
const decoder = new TextDecoder();
const started = performance.now();
let first, count = 0;
for await (const { byte, starts, written } of generate(new Text(ort, session), Buffer.from(prompt), {
  ends,
  maxBytes: Number(values['max-bytes']), temperature: Number(values.temperature),
  topK: Number(values['top-k']), topP: Number(values['top-p']), seed: Number(values.seed),
})) {
  if (values.patches && starts) process.stdout.write('|');
  if (written || values.patches) process.stdout.write(decoder.decode(Uint8Array.of(byte), { stream: true }));
  if (written) count++ || (first = performance.now());
}
process.stdout.write(`${decoder.decode()}\n`);

const rate = (count - 1) / ((performance.now() - first) / 1000);
console.error(`opened in ${(started - opened).toFixed(0)} ms, first byte after ${(first - started).toFixed(0)} ms, `
  + `${rate.toFixed(0)} bytes/s`);
