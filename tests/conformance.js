"use strict";
// Holds a reader against the vectors of docs/conformance, after reader.js, checks.js and model.js in one scope.

/** The names of the vectors that the reader does not pass, each with what it gave. */
function failures({ reading, mutants, tokenizing, generating }) {
  const failed = [];
  const compare = (name, found, wanted) => {
    if (canonical(found) !== canonical(wanted)) failed.push(`${name}: ${canonical(found).slice(0, 300)}`);
  };
  for (const { name, accept, refuse, ...given } of reading.vectors) {
    compare(name, outcome(given), accept === undefined ? { refuse } : { accept });
  }
  mutants.mutants.forEach(([place, begin, end, text, value], number) => {
    const [[name, original]] = Object.entries(mutants.texts[place].files);
    const old = new TextEncoder().encode(original);
    const middle = Uint8Array.from(text, (char) => char.charCodeAt(0));
    const content = Uint8Array.from([...old.subarray(0, begin), ...middle, ...old.subarray(end)]);
    const found = outcome({ ...mutants.texts[place], files: { [name]: content } });
    compare(`mutant ${number} of ${name}`, found.accept, value === null ? undefined : mutants.values[value]);
  });
  tokenizing.vocabularies.forEach(({ files, size }, place) => {
    const tokenizer = new Tokenizer(readVocabulary(files["vocab.py"], size));
    for (const { text, ids, decoded } of tokenizing.texts) {
      compare(`ids of ${canonical(text)} in vocabulary ${place}`, tokenizer.encode(text), ids[place]);
      compare(`text of ${canonical(text)} in vocabulary ${place}`, tokenizer.decode(ids[place]), decoded[place]);
    }
  });
  generating.vectors.forEach(({ files, ids, logits, greedy }, number) => {
    const config = readConfig(files["config.py"]);
    const model = new Transformer(config, readWeights([["weights.py", files["weights.py"]]], tensorShapes(config)));
    compare(`tokens of model ${number}`, [...generate(model, ids, 3, greedy.length, 0)], greedy);
    model.forget();
    const found = ids.map((id) => model.read(id)).at(-1)();
    const wanted = new Float32Array(bytes(logits).buffer);
    const far = wanted.filter((logit, at) => !(Math.abs(logit - found[at]) < 1e-4));
    if (far.length) failed.push(`logits of model ${number}`);
  });
  return failed;
}

function outcome({ files, size, shapes }) {
  const contents = Object.entries(files).map(([name, one]) => [name, one.base64 ? bytes(one.base64) : one]);
  try {
    if (shapes) {
      const tensors = Object.entries(readWeights(contents, shapes));
      return { accept: Object.fromEntries(tensors.map(([name, values]) => [name, base64(values)])) };
    }
    if (size === undefined) return { accept: settings(readConfig(contents[0][1])) };
    const vocabulary = readVocabulary(contents[0][1], size);
    checkVocabulary(vocabulary);
    const { algorithm, split, form, whole, rules, words, merges, specials, roles } = vocabulary;
    return { accept: {
      ALGORITHM: algorithm, SPLIT: split, UNICODE: form, IGNORE_MERGES: whole, NORMALISE: rules, WORDS: words,
      MERGES: merges, SPECIALS: specials.toSorted((a, b) => a - b), ...roles,
    } };
  } catch (error) {
    if (error instanceof Refusal) return { refuse: error.kind };
    throw error;
  }
}

/** The constants without those that readConfig adds. */
function settings({ FORMAT, HEAD_DIM, NUM_KV_HEADS, ...config }) {
  return config.BLOCK === "llama" ? { ...config, HEAD_DIM, NUM_KV_HEADS } : config;
}

const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
const base64 = (values) => btoa(String.fromCharCode(...new Uint8Array(values.buffer)));

/** JSON with sorted keys. */
function canonical(value) {
  const sorted = (_, one) => (one?.constructor === Object ? Object.fromEntries(Object.entries(one).sort()) : one);
  return JSON.stringify(value, sorted) ?? "refused";
}
