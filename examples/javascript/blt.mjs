// Runs a portable bundle with any ONNX Runtime for JavaScript: the caller gives the runtime, onnxruntime-web or -node.
// docs/portable.md has the contract that this follows.

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array, uint8: Uint8Array };
const CHUNK = 256; // ids of a prompt that are read at once

// One text: `feed` reads ids, and the state that the graph gives back goes into its next run.
export class Text {
  constructor(ort, session, contract) {
    Object.assign(this, { ort, session, contract });
    this.state = Object.fromEntries(contract.state.map(({ name, dtype, shape }) => {
      const zeros = new ARRAYS[dtype](shape.reduce((product, size) => product * size, 1));
      return [name, new ort.Tensor(dtype, zeros, shape)];
    }));
  }

  // Logits [vocabulary] after the last of `ids`, and for each id whether it starts a patch.
  async feed(ids) {
    const tensor = new this.ort.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
    const results = await this.session.run({ ids: tensor, ...this.state });
    for (const name in this.state) this.state[name] = results[`next.${name}`];
    return { logits: results.logits.data.slice(-results.logits.dims.at(-1)), starts: results.patch_starts.data };
  }
}

// Yields { byte, starts, written } for every byte of `prompt` (a Uint8Array) and then for every byte that is written.
export async function* generate(text, prompt, { maxBytes = 256, ...sampling } = {}) {
  const { bos, eos, offset } = text.contract;
  const ids = [bos, ...Array.from(prompt, byte => byte + offset)];
  let step;
  for (let at = 0; at < ids.length; at += CHUNK) {
    const chunk = ids.slice(at, at + CHUNK);
    step = await text.feed(chunk);
    for (const [index, id] of chunk.entries())
      if (at + index > 0) yield { byte: id - offset, starts: !!step.starts[index], written: false };
  }
  const choose = sampler(sampling, [...Array(256).keys()].map(byte => byte + offset).concat(eos));
  for (let count = 0; count < maxBytes; count++) {
    const id = choose(step.logits);
    if (id === eos) return;
    step = await text.feed([id]);
    yield { byte: id - offset, starts: !!step.starts[0], written: true };
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
