// Runs a portable bundle in JavaScript. The caller gives the runtime: onnxruntime-web, onnxruntime-node or another.
// docs/portable.md has the contract that this follows.

const BOS = 1, OFFSET = 4; // byte b is id b + 4
const CHUNK = 256; // ids of a prompt that are read at once
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

// One text. Its state is zeros at first, and then what the graph gave with the ids before.
export class Text {
  constructor(ort, session) {
    Object.assign(this, { ort, session, state: {} });
    for (const { name, type, shape } of session.inputMetadata.filter(({ name }) => name !== 'ids')) {
      const sizes = shape.map(size => (typeof size === 'number' ? size : 1));
      const zeros = new ARRAYS[type](sizes.reduce((product, size) => product * size, 1));
      this.state[name] = new ort.Tensor(type, zeros, sizes);
    }
  }

  // Reads `ids`; gives the logits of the id after them, and for each of them whether the id after it starts a patch.
  async feed(ids) {
    const tensor = new this.ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
    const results = await this.session.run({ ids: tensor, ...this.state });
    for (const name in this.state) this.state[name] = results[`next.${name}`];
    return { logits: results.logits.data.slice(-results.logits.dims.at(-1)), starts: results.patch_starts.data };
  }
}

// Yields { byte, starts, written } for each byte of `prompt` (a Uint8Array), then for each byte that the model writes:
// whether it starts a patch, whether it is written. `ends` are the ids that end a text.
export async function* generate(text, prompt, { maxBytes = 256, ends = [2], ...sampling } = {}) {
  const choose = sampler(sampling, [...new Set([...Array(256).keys()].map(byte => byte + OFFSET).concat(ends))]);
  const ids = [BOS, ...Array.from(prompt, byte => byte + OFFSET)];
  let step;
  for (let at = 0; at < ids.length; at += CHUNK) {
    step = await text.feed(ids.slice(at, at + CHUNK));
    for (const [index, starts] of step.starts.entries()) // of the byte after each id
      if (at + index < prompt.length) yield { byte: prompt[at + index], starts: !!starts, written: false };
  }
  for (let count = 1; count <= maxBytes; count++) {
    const id = choose(step.logits);
    if (ends.includes(id)) return;
    yield { byte: id - OFFSET, starts: !!step.starts.at(-1), written: true };
    if (count < maxBytes) step = await text.feed([id]);
  }
}

// Gives a function from logits to an id among `allowed`: the likeliest at temperature 0, else one drawn from the `topK`
// likeliest, and of these from the fewest whose probabilities sum to `topP`. The same seed draws the same ids.
export function sampler({ temperature = 0, topK = Infinity, topP = 1, seed = 0 }, allowed) {
  const random = randomNumbers(seed);
  return logits => {
    const order = [...allowed].sort((one, other) => logits[other] - logits[one] || one - other);
    if (!Number.isFinite(logits[order[0]])) throw new Error('the model gives logits that are not numbers');
    if (temperature === 0) return order[0];
    const weights = order.slice(0, topK).map(id => Math.exp((logits[id] - logits[order[0]]) / temperature));
    let rest = topP * sum(weights), count = 0;
    while (rest > 0 && count < weights.length) rest -= weights[count++];
    let point = random() * sum(weights.slice(0, count)), index = 0;
    while (index < count - 1 && (point -= weights[index]) >= 0) index++;
    return order[index];
  };
}

const sum = numbers => numbers.reduce((total, number) => total + number, 0);

// Numbers from 0 to 1 by the algorithm mulberry32.
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
