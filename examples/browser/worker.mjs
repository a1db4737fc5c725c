// Holds the model beside the page's own thread: loads it, then writes whenever the page asks.

import * as ort from './ort/ort.wasm.bundle.min.mjs';
import { generate, Text } from './blt.mjs';

const tell = (kind, content) => postMessage([kind, content]);
let session, ends, stopped;

// The bytes of one file of the bundle: kept from an earlier visit, or else from the network, checked, and then kept.
async function download(name, { size, sha256 }) {
  const [cache, key] = [await caches.open('edgeblt-model'), `model/${name}?${sha256}`];
  const kept = await cache.match(key);
  if (kept) return new Uint8Array(await kept.arrayBuffer());
  const reader = (await fetch(`model/${name}`)).body.getReader();
  const bytes = new Uint8Array(size);
  for (let at = 0, part; !(part = await reader.read()).done; at += part.value.length) {
    bytes.set(part.value, at);
    tell('loading', { done: at + part.value.length, size });
  }
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  if (Array.from(digest, byte => byte.toString(16).padStart(2, '0')).join('') !== sha256)
    throw new Error(`model/${name} did not arrive whole; reload the page`);
  for (const old of await cache.keys()) if (old.url.includes(`/${name}?`)) await cache.delete(old);
  await cache.put(key, new Response(bytes));
  return bytes;
}

async function load(threads) {
  const { name, recipe, portable, files } = await (await fetch('model/bundle.json')).json();
  ends = portable.ends;
  const graph = await download('model.onnx', files['model.onnx']);
  tell('opening');
  ort.env.wasm.numThreads = crossOriginIsolated ? threads : 1; // threads share memory, which only isolated pages may
  // Weights are unpacked now, rather than in every run.
  session = await ort.InferenceSession.create(graph, { extra: { session: { disable_quant_qdq: '1' } } });
  // A browser compiles what a run needs when it first runs: better now than when somebody waits.
  for await (const _ of generate(new Text(ort, session), new Uint8Array(64).fill(32), { maxBytes: 8 }));
  tell('ready', { name, recipe, size: graph.length, threads: ort.env.wasm.numThreads });
}

async function write({ prompt, options }) {
  stopped = false;
  let heard = performance.now();
  const text = new Text(ort, session);
  for await (const step of generate(text, new TextEncoder().encode(prompt), { ...options, ends })) {
    tell('step', { ...step, at: performance.timeOrigin + performance.now() });
    if (performance.now() - heard > 100) { // time to hear of a stop
      await new Promise(resolve => setTimeout(resolve));
      heard = performance.now();
    }
    if (stopped) break;
  }
  tell('ended', { stopped });
}

onmessage = ({ data }) => {
  stopped = true;
  const work = data.threads ? load(data.threads) : data.options ? write(data) : Promise.resolve();
  work.catch(error => tell('failed', error.message));
};
