"use strict";
// What a vocabulary from others must be besides: docs/package_format.md says why. A page needs none of this, because
// the package in it was checked when the page was written.

/** Throws Refusal for tokens that do not fit together, and for rules that could take more than linear time. */
function checkVocabulary(vocabulary) {
  const need = (kind) => (good, reason) => {
    if (!good) throw new Refusal(kind, "vocab.py", 0, reason);
  };
  checkRules(vocabulary.rules, need("pattern"));
  if (vocabulary.algorithm === "bpe") checkTokens(vocabulary, need("value"));
}

function checkTokens({ words, merges, roles, specials }, need) {
  const hidden = new Set(specials);
  const known = new Set(words.filter((_, id) => !hidden.has(id)).map(tokenBytes));
  need(!known.has("") && known.size + hidden.size === words.length, "two tokens have the same bytes, or one has none");
  const bytes = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte));
  need("UNK" in roles || bytes.every((byte) => known.has(byte)), "a byte has no token, and there is no UNK");
  for (const [left, right] of merges.map((pair) => pair.map(tokenBytes))) {
    need([left, right, left + right].every((token) => known.has(token)), "a merge of tokens that are not there");
  }
}

const ATOM = String.raw`(?:[^\\\[\](){}.|^$?*+]|\[(?![^\]]*(?:&&|--|\|\||~~))[^\\\[\]^][^\\\[\]]*\])`;

/** Normalising by these pairs must take linear time, and mean the same to all regex engines. */
function checkRules(rules, need) {
  need(rules.length <= 100 && [...rules.flat().join("")].length <= 10_000, "more than 100 pairs or 10,000 characters");
  let growth = 1;
  for (const [pattern, replacement] of rules) {
    need(whole(`(?:${ATOM}[?*+]?)+`).test(pattern), "only literals, [classes], ?, * and +");
    need(isRegExp(pattern), "a [class] that is not valid");
    const found = pattern.matchAll(new RegExp(`(${ATOM})([?*+]?)`, "gu"));
    const items = Array.from(found, ([, atom, times]) => ({ atom, times }));
    const needed = items.filter(({ times }) => times === "" || times === "+");
    need(needed.length > 0, "a pattern that matches the empty text");
    growth *= Math.max(1, [...replacement].length / needed.length);
    const before = items.slice(0, items.indexOf(needed.at(-1)));
    need(before.filter(({ times }) => times === "?").length <= 1, "more than one ? before a needed character");
    before.forEach(({ atom, times }, place) => {
      const apart = place > 0 && before[place - 1].times === "" && !overlap(before[place - 1].atom, atom);
      need(times === "" || times === "?" || apart, "a repeat must follow an item that it does not match");
    });
  }
  need(growth <= 1000, "the pairs make a text more than 1000 times as long");
}

function isRegExp(pattern) {
  try {
    return Boolean(new RegExp(pattern, "u"));
  } catch {
    return false;
  }
}

/** Whether two literals or classes have a character in common. */
function overlap(...atoms) {
  const [some, other] = atoms.map((atom) => {
    const ranges = (atom.length > 2 ? atom.slice(1, -1) : atom).matchAll(/(.)-(.)|(.)/gsu);
    return Array.from(ranges, ([, first, end, one]) => [first ?? one, end ?? one].map((char) => char.codePointAt(0)));
  });
  return some.some(([first, end]) => other.some(([from, to]) => first <= to && from <= end));
}
