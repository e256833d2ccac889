"use strict";
// Reads config.py, vocab.py and weights files as docs/package_format.md specifies them, without executing them.
// A content is text, or the bytes of a file. Throws Refusal, whose kinds docs/conformance/README.md lists.

class Refusal extends Error {
  constructor(kind, file, line, reason) {
    super(`${file}:${line}: ${reason}`);
    this.kind = kind;
  }
}

const HIDDEN = new RegExp(  // what an editor hides or displays elsewhere, but for the end of a line
  "[\\x00-\\t\\v-\\x1f\\x7f-\\xa0\\xad\\u034f\\u061c\\u115f\\u1160\\u1680\\u17b4\\u17b5\\u180b-\\u180f\\u2000-\\u200f" +
  "\\u2028-\\u202f\\u205f-\\u206f\\u3000\\u3164\\ud800-\\uf8ff\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\uffff" +
  "\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{10ffff}]", "u");
const TAIL = " *(?:#.*)?";
const STRING = String.raw`"((?:[^"\\]|\\["\\nt]|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})*)"`;
const whole = (pattern) => new RegExp(`^${pattern}$`, "u");
const COMMENT = whole(TAIL);

/** A file as lines, checked for what every data file must be. */
class Lines {
  constructor(name, content, magic, longest = Infinity) {
    Object.assign(this, { name, number: 0 });
    const text = typeof content === "string" ? content : this.decode(content);
    this.need(!HIDDEN.test(text), "hidden", `hidden character U+${HIDDEN.exec(text)?.[0].codePointAt(0).toString(16)}`);
    this.lines = text.split("\n");
    this.need(this.lines.pop() === "", "cut", "the last line has no line end");
    this.need(this.lines[this.number++] === magic, "magic", `the first line must be "${magic}"`);
    this.need(!/#.*coding[:=]/.test(this.lines[1]), "magic", "a coding line");
    const isLong = (line) => 3 * line.length > longest && new TextEncoder().encode(line).length > longest;
    this.need(!this.lines.some(isLong), "value", `a line of more than ${longest} bytes`);
  }

  decode(bytes) {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      return this.refuse("encoding", "not UTF-8");
    }
  }

  refuse(kind, reason) {
    throw new Refusal(kind, this.name, this.number, reason);
  }

  need(good, kind, reason) {
    return good || this.refuse(kind, reason);
  }

  /** The lines from here on that are neither blank nor a comment. */
  *rest() {
    while (this.number < this.lines.length) {
      const line = this.lines[this.number++];
      if (!COMMENT.test(line)) yield line;
    }
  }

  next() {
    return this.rest().next().value ?? this.refuse("cut", "the file ends too early");
  }

  expect(wanted) {
    this.need(this.rest().next().value === wanted, "order", `expected "${wanted}"`);
  }

  /** The matches of a section's lines, from its opening line to its closing one. */
  *section(opening, closing, pattern) {
    this.expect(opening);
    for (let line; (line = this.next()) !== closing;) yield this.need(pattern.exec(line), "grammar", "not such a line");
  }

  string(text) {
    return text.replace(/\\(?:(["\\nt])|u(.{4})|U(.{8}))/gu, (_, char, short, long) => {
      const code = parseInt(short ?? long, 16);
      this.need(char || code < 0xd800 || (code > 0xdfff && code <= 0x10ffff), "value", "an escape of no character");
      return char ? { n: "\n", t: "\t" }[char] ?? char : String.fromCodePoint(code);
    });
  }
}

// config.py

const FLOAT = String.raw`(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,60}(?:e[+-]?[0-9]{1,3})?|e[+-]?[0-9]{1,3})`;
const SETTING = whole(`([A-Z0-9_]+) = (?:(0|[1-9][0-9]{0,17})|(True|False)|${STRING}|(${FLOAT}))${TAIL}`);
const isInteger = (most) => (value) => typeof value === "bigint" && value >= 1 && value <= most;
const isFloat = (least, most) => (value) => typeof value === "number" && value >= least && value <= most;
const isTruth = (value) => typeof value === "boolean";
const SHARED = {
  FORMAT: (value) => value === 1n, VOCAB_SIZE: isInteger(1e8), DIM: isInteger(1e6), NUM_HEADS: isInteger(1e5),
  NUM_LAYERS: isInteger(1e4), MAX_SEQ_LEN: isInteger(1e8), TIED: isTruth, PARAMETERS: isInteger(1e18),
};
const BLOCKS = {
  original: { ...SHARED, ACTIVATION: (value) => Object.hasOwn(ACTIVATIONS, value) },
  llama: {
    ...SHARED, NUM_KV_HEADS: isInteger(1e5), HEAD_DIM: isInteger(1e6), HIDDEN_DIM: isInteger(1e7),
    ROPE_BASE: isFloat(1, 1e12), NORM_EPSILON: isFloat(1e-12, 1), QK_NORM: isTruth,
  },
};

/** config.py -> its constants by name, with BLOCK, HEAD_DIM and NUM_KV_HEADS in every block. */
function readConfig(content) {
  const lines = new Lines("config.py", content, "# qalam config 1");
  const found = {};
  for (const line of lines.rest()) {
    const [, name, integer, truth, text, float] = lines.need(SETTING.exec(line), "grammar", "not a setting");
    lines.need(!(name in found), "order", `${name} is set twice`);
    if (integer) found[name] = BigInt(integer);
    else if (float) found[name] = Number(float);
    else found[name] = truth ? truth === "True" : name === "BLOCK" ? text : lines.string(text);
  }
  const { BLOCK = "original", ...values } = found;
  lines.need(Object.hasOwn(BLOCKS, BLOCK), "value", "BLOCK is not one of these");
  for (const name in values) lines.need(name in BLOCKS[BLOCK], "order", `${name} is not a setting of this block`);
  for (const [name, isGood] of Object.entries(BLOCKS[BLOCK])) {
    lines.need(name in values, "order", `${name} is missing`);
    lines.need(isGood(values[name]), "value", `${name} cannot be this`);
  }
  const number = (value) => (typeof value === "bigint" ? Number(value) : value);
  const config = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, number(value)]));
  const { DIM, NUM_HEADS, NUM_KV_HEADS = NUM_HEADS, HEAD_DIM = DIM / NUM_HEADS } = config;
  Object.assign(config, { BLOCK, NUM_KV_HEADS, HEAD_DIM });
  const even = BLOCK === "original" ? Number.isInteger(HEAD_DIM) : HEAD_DIM % 2 === 0 && NUM_HEADS % NUM_KV_HEADS === 0;
  lines.need(even, "value", "the numbers of heads and dimensions do not divide");
  let parameters = 0n;
  for (const [rows, columns = 1] of Object.values(tensorShapes(config))) parameters += BigInt(rows) * BigInt(columns);
  lines.need(values.PARAMETERS === parameters, "size", `PARAMETERS should be ${parameters}`);
  return config;
}

/** Name -> shape of every tensor, in the exporter's order. */
function tensorShapes({ BLOCK, VOCAB_SIZE, DIM: C, HEAD_DIM: D, HIDDEN_DIM: F, ...config }) {
  const [Q, K, original] = [config.NUM_HEADS * D, config.NUM_KV_HEADS * D, BLOCK === "original"];
  const shapes = { "embedding.weight": [VOCAB_SIZE, C] };
  const add = (name, ...shape) => {
    shapes[`${name}.weight`] = shape;
    if (original) shapes[`${name}.bias`] = [shape[0]];
  };
  if (original) shapes.pos_embedding = [config.MAX_SEQ_LEN, C];
  const queries = original ? [["qkv", 3 * C, C]] : [["q", Q, C], ["k", K, C], ["v", K, C]];
  const norms = config.QK_NORM ? [["q_norm", D], ["k_norm", D]] : [];
  const forward = original ? [["fc1", 4 * C, C], ["fc2", C, 4 * C]] : [["gate", F, C], ["up", F, C], ["down", C, F]];
  const parts = [["ln1", C], ...queries, ...norms, ["out", C, Q], ["ln2", C], ...forward];
  for (let n = 0; n < config.NUM_LAYERS; n++) parts.forEach(([part, ...shape]) => add(`blocks.${n}.${part}`, ...shape));
  add("ln_out", C);
  if (!config.TIED) shapes["lm_head.weight"] = [VOCAB_SIZE, C];
  return shapes;
}

// vocab.py

const WORD = whole(` *${STRING}: (0|[1-9][0-9]{0,8}),${TAIL}`);
const PAIR = whole(` *\\(${STRING}, ${STRING}\\),${TAIL}`);
const SPECIAL = whole(` *${STRING}: "([A-Z ]*)",${TAIL}`);
const OURS = { "<PAD>": "PAD", "<UNK>": "UNK", "<START>": "START", "<END>": "END" };

/** vocab.py -> { algorithm, split, form, whole, rules, words, merges, roles: id by role, specials: ids }. */
function readVocabulary(content, size) {
  const lines = new Lines("vocab.py", content, "# qalam vocab 1");
  const setting = (name, known) => {
    const [, found, , truth, text] = SETTING.exec(lines.rest().next().value) ?? [];
    lines.need(found === name && known.includes(truth ?? text), "order", `${name} is one of ${known.join(", ")}`);
    return truth ?? text;
  };
  const pairs = (name) => {
    const found = lines.section(`${name} = (`, ")", PAIR);
    return Array.from(found, ([, left, right]) => [lines.string(left), lines.string(right)]);
  };
  const algorithm = setting("ALGORITHM", ["bpe", "word"]);
  const foreign = algorithm === "bpe" && lines.lines.some((line) => line.startsWith("SPLIT = "));
  const split = foreign ? setting("SPLIT", Object.keys(SPLITS)) : "al-qalam";
  const form = foreign ? setting("UNICODE", ["none", "NFC", "NFKC"]) : "NFKC";
  const whole = foreign && setting("IGNORE_MERGES", ["True", "False"]) === "True";
  const rules = pairs("NORMALISE");
  lines.need(form === "NFKC" || !rules.length, "pattern", "NORMALISE needs NFKC");
  const ids = new Map();
  for (const [, text, id] of lines.section("WORD2IDX = {", "}", WORD)) {
    const word = lines.string(text);
    lines.need(Number(id) === ids.size && !ids.has(word), "order", "ids count up from 0, and a word has one");
    ids.set(word, ids.size);
  }
  const words = [...ids.keys()];
  lines.need(words.length === size, "size", `${words.length} words, but VOCAB_SIZE is ${size}`);
  const ours = Object.keys(OURS).every((name, id) => words[id] === name);
  lines.need(foreign || ours, "order", "ids 0 to 3 are the special tokens");
  const usual = Object.entries(OURS).map((pair) => ["", ...pair]);
  const [roles, specials] = [{}, []];
  for (const [, text, of] of foreign ? lines.section("SPECIALS = {", "}", SPECIAL) : usual) {
    const id = ids.get(lines.string(text));
    lines.need(id !== undefined && !specials.includes(id), "order", "a special token twice, or not in WORD2IDX");
    specials.push(id);
    for (const role of of.split(" ").filter(Boolean)) {
      lines.need(Object.values(OURS).includes(role) && !(role in roles), "value", "no role, or one of two tokens");
      roles[role] = id;
    }
  }
  lines.need("START" in roles && "END" in roles, "value", "no token has the role START, or END");
  const merges = pairs("MERGES");
  const once = new Set(merges.map((pair) => JSON.stringify(pair))).size === merges.length;
  lines.need(once && (algorithm === "bpe" || !merges.length), "order", "a pair twice, or one in a word vocabulary");
  lines.expect("IDX2WORD = {index: word for word, index in WORD2IDX.items()}");
  lines.need(lines.rest().next().done, "order", "text after the end");
  return { algorithm, split, form, whole, rules, words, merges, roles, specials };
}

// weights.py, weights_001.py, ...

const NUMBER = String.raw`-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,60})?(?:e[+-]?[0-9]{1,3})?`;
const COUNT = "[1-9][0-9]{0,8}";
const HEADER = whole(
  ` {4}"([A-Za-z0-9_.]{1,200})": \\("([a-z0-9]+)", \\((${COUNT}),(?: (${COUNT}))?\\), (0|${COUNT}), (${COUNT}), \\(`);
const SCALE = String.raw`[1-9]\.[0-9]{8}e(?:\+[0-9]{2}|-(?!00)[0-9]{2})|0\.00000000e\+00`;
const BASE64 = "[A-Za-z0-9+/]+={0,2}";
const CELL = "   [0-9]|  [1-9][0-9]|  -[1-9]| -[1-9][0-9]| 1[01][0-9]| 12[0-7]|-1[01][0-9]|-12[0-7]";
const VALUE_ROW = whole(` *(${NUMBER}),${TAIL}`);
const LIST_ROW = whole(` *\\[(${NUMBER}(?:, *${NUMBER})*)\\],${TAIL}`);
const FLOATS_ROW = whole(` *()"(${BASE64})",${TAIL}`);
const [I8_ROW, Q8_ROW] = [BASE64, `(?:${CELL})+`].map((text) => whole(` *\\((${SCALE}), "(${text})"\\),${TAIL}`));
const [LEAST_SCALE, MOST_SCALE] = [2 ** -126, Math.fround(((2 - 2 ** -23) * 2 ** 127) / 127)];

function f16(bits) {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return NaN;  // or infinite, and neither is allowed
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

const bf16 = (bits) => new Float32Array(new Uint32Array([bits << 16]).buffer)[0];
const TYPES = {  // how a row looks, and its values, from what is between the quotes
  f32: { row: FLOATS_ROW, values: (text) => numbers(text, 4, (view, at) => view.getFloat32(at, true)) },
  f16: { row: FLOATS_ROW, values: (text) => numbers(text, 2, (view, at) => f16(view.getUint16(at, true))) },
  bf16: { row: FLOATS_ROW, values: (text) => numbers(text, 2, (view, at) => bf16(view.getUint16(at, true))) },
  i8: { row: I8_ROW, values: (text) => numbers(text, 1, (view, at) => view.getInt8(at)) },
  q8: { row: Q8_ROW, values: (text) => text.match(/.{4}/g).map(Number) },
};

/** Numbers of so many bytes each, from base64; none if they do not come out even, NaN if it is not canonical. */
function numbers(text, width, value) {
  const bytes = text.length % 4 === 0 ? atob(text) : "";
  if (bytes.length % width) return [];
  if (btoa(bytes) !== text) return bytes ? [NaN] : [];
  const view = new DataView(new ArrayBuffer(bytes.length));
  for (let at = 0; at < bytes.length; at++) view.setUint8(at, bytes.charCodeAt(at));
  return Array.from({ length: bytes.length / width }, (_, at) => value(view, at * width));
}

/** A NUMBER as float32. Without point and exponent it is an integer, so "-0" is 0. */
const decimal = (text) => Math.fround(/[.e]/.test(text) ? Number(text) : Number(text) + 0);

/** The values of a matrix row. */
function readRow(line, { row, values }, lines) {
  const list = LIST_ROW.exec(line);
  if (list) return list[1].split(",").map((text) => decimal(text.trim()));
  const [, scale, stored] = lines.need(row.exec(line), "grammar", "not a matrix row");
  const found = values(stored);
  if (!scale) return found;
  const factor = Math.fround(Number(scale));
  const zero = Number(scale) === 0 && found.every((value) => value === 0);
  lines.need(zero || (factor >= LEAST_SCALE && factor <= MOST_SCALE), "value", "a scale out of range, or not of zeros");
  lines.need(!found.includes(-128), "value", "-128");
  return found.map((value) => value * factor);
}

/** Weights files, [name, content] in order, -> Float32Array by tensor, one row after another. */
function readWeights(files, shapes) {
  const names = Object.keys(shapes);
  const sizes = names.map((name) => shapes[name].reduce((all, one) => all * one));
  const sum = (counts) => counts.reduce((all, one) => all + one, 0);
  const enough = sum(sizes) <= sum(files.map(([, content]) => content.length));
  if (!enough) throw new Refusal("cut", "weights.py", 0, "fewer bytes than values");
  const tensors = Object.fromEntries(names.map((name, at) => [name, new Float32Array(sizes[at])]));
  const filled = Object.fromEntries(names.map((name) => [name, 0]));
  let [last, lines] = [names[0], null];
  const complete = (name) => lines.need(filled[name] === shapes[name][0], "order", `${name}: ${filled[name]} rows`);
  for (const [file, content] of files) {
    lines = new Lines(file, content, "# qalam weights 1", 1 << 20);
    const here = new Set();
    lines.expect("WEIGHTS = {");
    for (let line; (line = lines.next()) !== "}";) {
      const [, name, type, height, width = "", first, rows] = lines.need(HEADER.exec(line), "grammar", "not a tensor");
      lines.need(Object.hasOwn(shapes, name), "order", `${name} is not a tensor of this model`);
      lines.need(String(shapes[name]) === [height, width].filter(Boolean).join(), "size", `${name} has another shape`);
      lines.need(width ? Object.hasOwn(TYPES, type) : type === "dec", "value", `${type} is not a storage type here`);
      if (filled[last] && last !== name) complete(last);
      const [begin, end, columns] = [Number(first), Number(first) + Number(rows), Number(width || 1)];
      const due = !here.has(name) && begin === filled[name] && end <= shapes[name][0];
      lines.need(due, "order", `a part of ${name} in the wrong place`);
      for (let row = begin; row < end; row++) {
        const text = lines.next();
        const value = () => [decimal(lines.need(VALUE_ROW.exec(text), "grammar", "not a number")[1])];
        const values = width ? readRow(text, TYPES[type], lines) : value();
        lines.need(values.every(Number.isFinite), "value", "a value that is not finite in float32");
        lines.need(values.length === columns, "size", `${values.length} values in a row of ${columns}`);
        tensors[name].set(values, row * columns);
      }
      lines.need(lines.next() === "    )),", "size", `${name} should end here`);
      here.add(name);
      [last, filled[name]] = [name, end];
    }
    lines.need(lines.number === lines.lines.length, "order", "text after the end");
  }
  names.forEach(complete);
  return tensors;
}
