// The page: sends what the reader asks to the worker, and shows what the worker says.

const get = id => document.getElementById(id);
const worker = new Worker('worker.mjs', { type: 'module' });
const megabytes = size => `${(size / 1e6).toFixed(1)} MB`;
let run; // counts and times of the text that is being written, and where its next byte goes

function say(text, state) { // loading, ready, writing or failed
  get('said').textContent = text;
  get('size').textContent = '';
  document.body.className = state;
  get('write').disabled = state !== 'ready' && !(state === 'failed' && run);
  get('stop').disabled = state !== 'writing';
}

const add = (parent, className) => parent.appendChild(Object.assign(document.createElement('span'), { className }));

// Each patch is an element. A character appears with its last byte, so in the patch of that byte.
function show({ byte, starts, written, at }) {
  if (starts || !run.patch) run.patch = add(get('text'), 'patch');
  const kind = written ? 'written' : 'given';
  const part = run.patch.lastChild?.className === kind ? run.patch.lastChild : add(run.patch, kind);
  part.textContent += run.decoder.decode(Uint8Array.of(byte), { stream: true });
  run.bytes++;
  if (written && run.written++ === 0) run.first = at;
  run.last = at;
}

function showCounts() {
  const patches = get('text').childElementCount;
  const rate = (run.written - 1) / (run.last - run.first) * 1000;
  get('speed').textContent = run.written > 1 ? `${Math.round(rate)} bytes/s` : '–';
  get('first').textContent = run.first ? `${Math.round(run.first - run.began)} ms` : '–';
  get('patches').textContent = patches || '–';
  get('mean').textContent = patches ? (run.bytes / patches).toFixed(1) : '–';
  get('text').scrollTop = get('text').scrollHeight;
}

function write(event) {
  event.preventDefault();
  if (get('write').disabled || !get('form').reportValidity()) return;
  const fields = [...document.querySelectorAll('.fields input')];
  const options = Object.fromEntries(fields.map(({ id, value }) => [id, Number(value)]));
  run = { decoder: new TextDecoder(), bytes: 0, written: 0, began: performance.timeOrigin + performance.now() };
  get('text').replaceChildren();
  showCounts();
  say('Writing …', 'writing');
  worker.postMessage({ prompt: get('prompt').value, options });
}

const hear = {
  loading({ done, size }) {
    get('progress').value = done / size;
    get('size').textContent = `${megabytes(done)} of ${megabytes(size)}`;
  },
  opening: () => say('Opening the model …', 'loading'),
  ready({ name, recipe, size, threads }) {
    const why = crossOriginIsolated ? '' : ': more need a host that isolates the page by its Cross-Origin headers';
    get('machine').textContent = `WebAssembly with SIMD, ${threads} thread${threads > 1 ? 's' : ''}${why}.`;
    say(`Ready: ${name}, ${recipe}, ${megabytes(size)}`, 'ready');
  },
  step(step) {
    show(step);
    if (run.written % 8 === 1) showCounts();
  },
  ended({ stopped }) {
    run.patch?.lastChild.append(run.decoder.decode()); // an unfinished character at the end
    showCounts();
    say(`${stopped ? 'Stopped' : 'Done'}: ${run.written} bytes written.`, 'ready');
  },
  failed: message => say(message, 'failed'),
};
worker.onmessage = ({ data: [kind, content] }) => hear[kind](content);
worker.onerror = event => say(event.message || 'The page did not arrive whole; reload it.', 'failed');

get('form').onsubmit = write;
get('stop').onclick = () => worker.postMessage('stop');
document.onkeydown = event => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) write(event);
  if (event.key === 'Escape') worker.postMessage('stop');
};
if (!isSecureContext) say('Browsers run this page only over https or from localhost.', 'failed');
else worker.postMessage({ threads: Number(new URLSearchParams(location.search).get('threads')) || 2 });
navigator.serviceWorker?.register('offline.mjs');
