"use strict";
// From text to tokens, through the transformer, and back to text: docs/package_format.md, with what reader.js reads.

// Tokens are strings with a character up to U+00FF for each byte, because strings can be keys.

const utf8 = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
const tokenBytes = (word) =>
  utf8(word).replace(/\\(?:\\|x([0-9a-f]{2}))/g, (_, code) => (code ? String.fromCharCode(parseInt(code, 16)) : "\\"));

const spaced = (pattern) =>  // white space is Unicode's, which is not JavaScript's
  new RegExp(pattern.replaceAll("\\s", "\\p{White_Space}").replaceAll("\\S", "\\P{White_Space}"), "gu");
const modern = (digits) => spaced(
  String.raw`'(?:[sStTmMdDſ]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}${digits}` +
  String.raw`| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`);
const SPLITS = {
  "al-qalam": spaced(String.raw` ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+`),
  gpt2: spaced(String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`),
  llama3: modern("{1,3}"),
  qwen2: modern(""),
};
const WORDS = spaced(String.raw`[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]`);

function normalise(text, rules, form) {
  if (form !== "NFKC") return form === "NFC" ? text.normalize("NFC") : text;
  const isFirst = (pattern) => [...pattern].some((char) => char.normalize("NFKC") !== char);
  for (const first of [true, false]) {
    for (const [pattern, replacement] of rules) {
      if (isFirst(pattern) === first) text = text.replace(new RegExp(pattern, "gu"), () => replacement);
    }
    text = text.normalize("NFKC");
  }
  return text.replace(spaced(String.raw`^\s+|(?<!\s)\s+$`), "");
}

class Tokenizer {
  /** The vocabulary is that of readVocabulary. */
  constructor(vocabulary) {
    Object.assign(this, vocabulary);
    this.named = new Set(this.specials);
    this.tokens = this.algorithm === "word" ? this.words : this.words.map(tokenBytes);
    this.ids = new Map(this.tokens.map((token, id) => [token, id]).filter(([, id]) => !this.named.has(id)));
    this.ranks = new Map();
    for (const [rank, pair] of this.merges.entries()) {
      const key = pair.map((word) => this.ids.get(tokenBytes(word))).join();
      if (!this.ranks.has(key)) this.ranks.set(key, rank);  // two spellings can be the same bytes
    }
  }

  /** Text -> ids. */
  encode(text) {
    const split = this.algorithm === "word" ? WORDS : SPLITS[this.split];
    const pieces = normalise(text, this.rules, this.form).match(split) ?? [];
    return pieces.flatMap((piece) => (this.algorithm === "word" ? this.id(piece) : this.merge(utf8(piece))));
  }

  id(token) {
    return this.ids.get(token) ?? this.roles.UNK;
  }

  /** Join the pair of lowest rank, the leftmost of several, until no pair can be joined. */
  merge(piece) {
    if (this.whole && this.ids.has(piece)) return this.id(piece);
    const ids = Array.from(piece, (byte) => this.id(byte));
    for (;;) {
      let [lowest, place] = [Infinity, 0];
      for (let at = 0; at + 1 < ids.length; at++) {
        const rank = this.ranks.get(`${ids[at]},${ids[at + 1]}`) ?? Infinity;
        if (rank < lowest) [lowest, place] = [rank, at];
      }
      if (lowest === Infinity) return ids;
      ids.splice(place, 2, this.id(this.tokens[ids[place]] + this.tokens[ids[place + 1]]));
    }
  }

  /** Ids -> text, with <UNK> and without the other special tokens. */
  decode(ids) {
    const shown = ids.filter((id) => id === this.roles.UNK || !this.named.has(id));
    if (this.algorithm === "word") return shown.map((id) => this.words[id]).join(" ");
    const bytes = shown.map((id) => (id === this.roles.UNK ? utf8(this.words[id]) : this.tokens[id])).join("");
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));
  }
}

// The transformer takes one token after another; what later tokens need of earlier ones stays in each block's memory.

/** Matrix times vector, plus a bias if there is one. Four sums at once, because none of them waits for another. */
function linear(matrix, x, bias) {
  const [columns, wide] = [x.length, Float64Array.from(x)];  // converted once, not for each row
  const result = new Float32Array(matrix.length / columns);
  for (let row = 0; row < result.length; row++) {
    const end = (row + 1) * columns;
    let [place, at, one, two, three, four] = [row * columns, 0, bias ? bias[row] : 0, 0, 0, 0];
    for (; place + 3 < end; place += 4, at += 4) {
      one += matrix[place] * wide[at];
      two += matrix[place + 1] * wide[at + 1];
      three += matrix[place + 2] * wide[at + 2];
      four += matrix[place + 3] * wide[at + 3];
    }
    for (; place < end; place++, at++) one += matrix[place] * wide[at];
    result[row] = one + two + three + four;
  }
  return result;
}

const plus = (x, y) => x.map((value, at) => value + y[at]);
const mean = (x) => x.reduce((sum, value) => sum + value, 0) / x.length;

/** The error function within 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592].reduce((all, a) => (all + a) * t, 0);
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const ACTIVATIONS = {
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};
const silu = (x) => x / (1 + Math.exp(-x));

class Transformer {
  /** `config` is that of readConfig, `weights` those of readWeights. */
  constructor(config, weights) {
    Object.assign(this, { config, weights });
    this.forget();
  }

  /** Begin another text. */
  forget() {
    this.position = 0;
    this.memories = Array.from({ length: this.config.NUM_LAYERS }, () => ({ keys: [], values: [] }));
  }

  /** Take the next token; -> a function that gives the logits of the one after it, until another token is taken.
   *
   * What the last block gives is needed for these logits alone, so only that function computes it. */
  read(id) {
    const { config, weights } = this;
    const row = (name, at) => weights[name].subarray(at * config.DIM, (at + 1) * config.DIM);
    const token = row("embedding.weight", id);
    const first = weights.pos_embedding ? plus(token, row("pos_embedding", this.position)) : token;
    let output = () => first;
    this.memories.forEach((memory, index) => {
      const [input, block] = [output(), `blocks.${index}`];
      const query = this.remember(this.norm(input, `${block}.ln1`), block, memory);
      output = () => {
        const middle = plus(input, this.linear(this.attention(query, memory), `${block}.out`));
        return plus(middle, this.feedForward(this.norm(middle, `${block}.ln2`), block));
      };
    });
    this.position++;
    return () => linear(weights["lm_head.weight"] ?? weights["embedding.weight"], this.norm(output(), "ln_out"));
  }

  linear(x, name) {
    return linear(this.weights[`${name}.weight`], x, this.weights[`${name}.bias`]);
  }

  /** LayerNorm in the original, RMSNorm in llama, where nothing is centred and nothing added. */
  norm(x, name) {
    const [weight, bias] = [this.weights[`${name}.weight`], this.weights[`${name}.bias`]];
    const centre = bias ? mean(x) : 0;
    const centred = x.map((value) => value - centre);
    const deviation = Math.sqrt(mean(centred.map((value) => value * value)) + (bias ? 1e-5 : this.config.NORM_EPSILON));
    return centred.map((value, at) => (value / deviation) * weight[at] + (bias ? bias[at] : 0));
  }

  /** Put a position's keys and values into the block's memory; -> its queries. Heads are one after another in each. */
  remember(x, block, { keys, values }) {
    let parts = [];
    if (this.config.BLOCK === "original") {
      const all = this.linear(x, `${block}.qkv`);
      parts = [0, 1, 2].map((part) => all.subarray(part * x.length, (part + 1) * x.length));
    } else {
      parts = ["q", "k", "v"].map((part) => this.linear(x, `${block}.${part}`));
      this.turn(parts[0], `${block}.q_norm`);
      this.turn(parts[1], `${block}.k_norm`);
    }
    const [query, key, value] = parts;
    keys.push(key);
    values.push(value);
    return query;
  }

  /** Normalise each head if the model does, then turn its pairs of numbers by angles that grow with the position. */
  turn(heads, norm) {
    const { QK_NORM, ROPE_BASE, HEAD_DIM } = this.config;
    const half = HEAD_DIM / 2;
    for (let start = 0; start < heads.length; start += HEAD_DIM) {
      const head = heads.subarray(start, start + HEAD_DIM);
      if (QK_NORM) head.set(this.norm(head, norm));
      for (let at = 0; at < half; at++) {
        const angle = this.position * ROPE_BASE ** (-at / half);
        const [one, two, cosine, sine] = [head[at], head[at + half], Math.cos(angle), Math.sin(angle)];
        [head[at], head[at + half]] = [one * cosine - two * sine, two * cosine + one * sine];
      }
    }
  }

  /** For each head the values of all positions so far, mixed by how well their keys fit the query. */
  attention(query, { keys, values }) {
    const { NUM_HEADS, NUM_KV_HEADS, HEAD_DIM } = this.config;
    const mixed = new Float32Array(query.length);
    for (let head = 0; head < NUM_HEADS; head++) {
      const [to, from] = [head * HEAD_DIM, Math.floor((head * NUM_KV_HEADS) / NUM_HEADS) * HEAD_DIM];
      const shares = softmax(keys.map((key) => {
        let fit = 0;
        for (let at = 0; at < HEAD_DIM; at++) fit += query[to + at] * key[from + at];
        return fit / Math.sqrt(HEAD_DIM);
      }));
      for (let position = 0; position < shares.length; position++) {
        const [share, value] = [shares[position], values[position]];
        for (let at = 0; at < HEAD_DIM; at++) mixed[to + at] += share * value[from + at];
      }
    }
    return mixed;
  }

  feedForward(x, block) {
    if (this.config.BLOCK === "original") {
      return this.linear(this.linear(x, `${block}.fc1`).map(ACTIVATIONS[this.config.ACTIVATION]), `${block}.fc2`);
    }
    const [gate, up] = [this.linear(x, `${block}.gate`), this.linear(x, `${block}.up`)];
    return this.linear(gate.map((value, at) => silu(value) * up[at]), `${block}.down`);
  }
}

/** Numbers as shares of 1, the larger the more. */
function softmax(scores) {
  const highest = scores.reduce((most, score) => Math.max(most, score));
  const powers = scores.map((score) => Math.exp(score - highest));
  const sum = powers.reduce((all, power) => all + power, 0);
  return powers.map((power) => power / sum);
}

/** At temperature 0 the likeliest id, else one drawn from the 50 likeliest. */
function sample(logits, temperature) {
  const best = logits.reduce((most, logit, id) => (logit > logits[most] ? id : most), 0);
  if (!logits.every((logit) => logit <= logits[best]) || !Number.isFinite(logits[best])) {
    throw new RangeError("logits are not finite: weights are too large");
  }
  if (temperature === 0) return best;
  const least = logits.slice().sort().at(-50) ?? -Infinity;
  const shares = softmax(Array.from(logits, (logit) => (logit < least ? -Infinity : logit / temperature)));
  let rest = Math.random();
  const drawn = shares.findIndex((share) => (rest -= share) < 0);
  return drawn < 0 ? best : drawn;
}

/** At most `count` ids that continue `ids`, one by one; the last one may be <END>, whose id is `end`. */
function* generate(model, ids, end, count, temperature) {
  const [text, window] = [[...ids], model.config.MAX_SEQ_LEN];
  model.forget();
  for (let id; text.length < ids.length + count && id !== end; text.push(id)) {
    // beyond the context all positions shift, so all tokens of the window are read again
    const more = model.position && text.length <= window ? text.slice(-1) : (model.forget(), text.slice(-window));
    id = sample(more.map((one) => model.read(one)).at(-1)(), temperature);
    yield id;
  }
}

/** The model in the files of a package, { name: content }. */
function openPackage(files) {
  const config = readConfig(files["config.py"]);
  const tokenizer = new Tokenizer(readVocabulary(files["vocab.py"], config.VOCAB_SIZE));
  const part = (number) => (number ? `weights_${String(number).padStart(3, "0")}.py` : "weights.py");
  const parts = [];
  while (part(parts.length) in files) parts.push([part(parts.length), files[part(parts.length)]]);
  return { config, tokenizer, model: new Transformer(config, readWeights(parts, tensorShapes(config))) };
}
