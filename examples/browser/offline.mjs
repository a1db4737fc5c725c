// Service worker: keeps what the page consists of, for when there is no network. worker.mjs keeps the model's files.

const FILES = ['./', 'style.css', 'page.mjs', 'worker.mjs', 'blt.mjs', 'model/bundle.json',
  'ort/ort.wasm.bundle.min.mjs', 'ort/ort-wasm-simd-threaded.wasm'];
const kept = caches.open('edgeblt-page');

async function answer(request) {
  const response = await fetch(request).catch(async () => (await kept).match(request, { ignoreSearch: true }));
  if (response?.ok) (await kept).put(request, response.clone());
  return response ?? Response.error();
}

self.oninstall = event => event.waitUntil(kept.then(cache => cache.addAll(FILES)));
self.onactivate = event => event.waitUntil(self.clients.claim());
self.onfetch = event => {
  const url = event.request.url.split('?')[0];
  if (FILES.some(name => url === new URL(name, self.location).href)) event.respondWith(answer(event.request));
};
