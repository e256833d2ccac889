"use strict";
// The page of `qalam serve`: it writes with a model token by token, and reads what is inside it. Whatever comes from the
// model is set as text, never as markup, and its control characters are written as escapes.

const at = (id) => document.getElementById(id);
const [mark, others, form, prompt, temperature, length, two, go, status] = [
  "mark", "others", "form", "prompt", "temperature", "length", "two", "go", "status",
].map(at);
const figure = (value, digits = 0) => value.toLocaleString("ar-EG", { maximumFractionDigits: digits });
const percent = (part) => (part < 0.0001 ? `أقل من ${figure(0.01, 2)}٪` : `${figure(part * 100, part < 0.01 ? 2 : 1)}٪`);
const LEVELS = [0.01, 0.05, 0.2, 0.5];  // probabilities from which a token's line is thicker
const OTHERS = 12;  // tokens that are offered instead of one
let [key, model] = ["", null];
let [edits, copy] = [[], ""];  // the page's changes, and the name of its changed copy of the model

// what a browser would obey; as in display.py
const CONTROLS = new RegExp("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u206f" +
  "\\ud800-\\udfff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}]", "gu");
const escaped = (char) => {
  const code = char.codePointAt(0);
  return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
};
const printable = (given) => given.replace(CONTROLS, escaped);
// a token by itself, on one line: its spaces are visible
const NAMED = { " ": "␣", "\n": "⏎", "\t": "⇥" };
const named = (token) => printable(token).replace(/^ |[\n\t]| $/g, (char) => NAMED[char]) || "∅";

function make(tag, content = "", attributes = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (typeof content === "string") made.textContent = content;
  else made.append(...content);
  return made;
}
const word = (token) => make("bdi", named(token));

// ---- the server

async function ask(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, {
    method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store",
  });
  if (answer.ok) return answer;
  if (answer.status === 401) askKey();
  const problem = await answer.json().catch(() => null);
  throw new Error(problem?.error?.message ?? `HTTP ${answer.status}`);
}
async function asked(path, body, signal) {
  const found = await (await ask(path, body, signal)).json();
  if (model && found.served && found.served !== model.run) await replaced();
  return found;
}

function askKey() {
  at("key").hidden = false;
  at("token").value = "";
  at("token").focus();
}

const say = (message, where = status) => where.replaceChildren(...[message].flat());

/** Do it, and say what went wrong. */
async function tried(action, where = status) {
  say("");
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") say(["تعذّر ذلك: ", make("bdi", printable(error.message), { dir: "ltr" })], where);
  }
}

/** Read what the served model is called and how large it is. */
async function meet() {
  model = await asked("page/model");
  entitle();
  document.title = printable(model.run);
  for (const [name, count] of [["layer", model.layers], ["head", model.heads]]) {
    at(name).replaceChildren(...Array.from({ length: count }, (_, n) => make("option", figure(n + 1), { value: n })));
  }
  length.max = Math.min(400, model.context - 1);
  length.dispatchEvent(new Event("input"));
}

const entitle = () => at("name").replaceChildren(make("bdi", printable(model.run)), copy && " (معدّل)");

/** Another model is served since: say so, as what is on the page may be of the one before. */
async function replaced() {
  const before = model.run;
  await meet();
  say([make("bdi", printable(model.run)), " حلّ محلّ ", make("bdi", printable(before)), "، وما على الصفحة قبل ذلك من السابق."]);
}

async function open() {
  await meet();
  at("key").hidden = true;
  go.disabled = false;
  say(`عدد المعاملات: ${figure(model.parameters)}، الرموز: ${figure(model.words)}، السياق: ${figure(model.context)}`);
  prompt.focus();
}

// ---- write

/** Events of a stream, as they come. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (left + value).split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice("data: ".length));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** A text that is written token by token in a box of its own, and can be written on from another token. */
class Column {
  words = [];
  chosen = -1;  // of them, where others are offered
  writing = null;

  constructor(box) {
    [this.box, this.text, this.said] = [box, box.querySelector(".text"), box.querySelector(".said")];
    const numbered = (event) => Number(event.target.closest?.(".token")?.dataset.n ?? -1);
    this.text.addEventListener("focusin", (event) => numbered(event) >= 0 && this.tell(numbered(event)));
    this.text.addEventListener("click", (event) => numbered(event) >= 0 && this.choose(numbered(event)));
    this.text.addEventListener("keydown", (event) => {
      const [n, all] = [numbered(event), this.words.length];
      const by = { ArrowLeft: 1, ArrowRight: -1, Home: -all, End: all }[event.key];  // right to left
      if (n < 0 || (!by && event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      if (by) this.step(n, by);
      else this.choose(n);
    });
  }

  /** Write on after a text and the tokens behind it: at most `most` tokens, and focus on one as soon as it is there. */
  async write(begin, tokens = [], most = Number(length.value), focused = -1) {
    this.stop();
    const mine = this.writing = new AbortController();
    const alone = () => this.writing === mine;
    this.close();
    relabel();
    say("يكتب…", this.said);
    try {
      const { ids, run } = await asked("page/ids", { model: copy, text: begin, tokens }, mine.signal);
      const room = model.context - 1 - ids.length;
      if (room < 0) throw new Error(`${ids.length} / ${model.context - 1}: the text is longer than the model's context`);
      const answer = await ask("v1/completions", {
        model: run, prompt: ids, max_tokens: Math.min(most, room), temperature: Number(temperature.value), top_k: 50,
        logprobs: OTHERS, echo: true, stream: true,
      }, mine.signal);
      const [written, since, words] = [[], performance.now(), []];
      this.text.replaceChildren();
      this.words = words;
      for await (const { choices: [choice] } of events(answer)) {
        if (!alone()) return;
        written.push(...choice.text);  // by characters: offsets count these
        const { tokens: new_, token_logprobs, top_logprobs, text_offset } = choice.logprobs;
        new_.forEach((token, n) => words.push({
          token, logprob: token_logprobs[n], top: top_logprobs[n], offset: text_offset[n], given: words.length < ids.length,
        }));
        this.show(written, new_.length + 1);
        if (words[focused]) [, focused] = [this.step(focused, 0), -1];
      }
      const count = words.length - ids.length;
      const speed = count / ((performance.now() - since) / 1000);
      const full = most && room < most && count === room ? "، امتلأ السياق" : "";
      say(count ? `الرموز: ${figure(count)}، في الثانية: ${figure(speed)}${full}` : `انتهى النص هنا${full}`, this.said);
    } finally {
      if (alone() && mine.signal.aborted) say("", this.said);
      if (alone()) this.writing = null;
      relabel();
    }
  }

  stop() {
    this.writing?.abort();
  }

  /** Show the last so many tokens, which are new, or may have got more of their characters. */
  show(written, latest) {
    for (let n = Math.max(0, this.words.length - latest); n < this.words.length; n++) {
      const one = this.words[n];
      one.shown ??= this.token(n);
      const piece = written.slice(one.offset, this.words[n + 1]?.offset).join("");
      if (one.piece !== piece) one.shown.textContent = printable(one.piece = piece);
    }
    if (!this.text.contains(document.activeElement)) this.text.scrollTop = this.text.scrollHeight;
  }

  token(n) {
    const { logprob, given } = this.words[n];
    const heat = LEVELS.filter((level) => Math.exp(logprob) >= level).length;
    const made = make("span", "", {
      class: `token heat-${heat}${given ? " given" : ""}`, role: "button", tabindex: n ? -1 : 0, "aria-expanded": false,
    });
    made.dataset.n = n;
    this.text.append(made);
    return made;
  }

  /** Say a token's probability, and which it is of those that were possible. */
  tell(n) {
    const { token, logprob, top } = this.words[n];
    const likelier = Object.values(top).filter((other) => other > logprob).length;
    const rank = likelier < Object.keys(top).length ? `، ترتيبه ${figure(likelier + 1)}` : "";
    mark.replaceChildren(word(token), ` احتماله ${percent(Math.exp(logprob))}${rank}`);
  }

  /** Offer others in place of the n-th token. */
  choose(n) {
    for (const one of columns) one.close();
    this.chosen = n;
    const { token, logprob, top, shown } = this.words[n];
    shown.setAttribute("aria-expanded", true);
    const offered = Object.entries({ __proto__: null, ...top, [token]: logprob }).sort((a, b) => b[1] - a[1]);
    others.replaceChildren(...offered.map(([other, value]) => {
      const bar = make("i");
      bar.style.inlineSize = `${Math.exp(value - offered[0][1]) * 100}%`;
      const button = make("button", [word(other), make("span", percent(Math.exp(value))), bar], {
        type: "button", "aria-pressed": other === token,
      });
      button.addEventListener("click", () => this.branch(n, other));
      return button;
    }));
    this.box.append(others);
    others.hidden = false;
    shown.scrollIntoView({ block: "nearest" });  // the text has become lower
    others.firstChild.focus();
  }

  /** Offer none; -> in place of which token they were. */
  close() {
    const was = this.chosen;
    if (was >= 0) [others.hidden, this.chosen] = [true, -1];
    this.words[was]?.shown?.setAttribute("aria-expanded", false);
    return was;
  }

  /** Write on from another token in place of the n-th. */
  branch(n, other) {
    const before = this.words.slice(0, n).map((one) => one.token);
    const ends = other === model.end;
    const write = () => (ends ? this.write("", before, 0, n - 1) : this.write("", [...before, other], undefined, n));
    tried(write, this.said);
  }

  step(from, by) {
    const next = this.words[Math.min(this.words.length - 1, Math.max(0, from + by))]?.shown;
    if (!next) return;
    for (const one of this.text.querySelectorAll("[tabindex='0']")) one.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
const columns = [...document.querySelectorAll(".column")].map((box) => new Column(box));
const [first, second] = columns;
const busy = () => columns.some((one) => one.writing);
const relabel = () => {
  go.textContent = busy() ? "قف" : "أكمل";
};

others.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: 1, ArrowDown: 1, ArrowRight: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const all = [...others.children];
  all[Math.min(all.length - 1, Math.max(0, all.indexOf(event.target.closest("button")) + by))].focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const open = columns.find((one) => one.chosen >= 0);
  if (open) open.step(open.close(), 0);
  else for (const one of columns) one.stop();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!busy()) form.requestSubmit(go);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const visible = columns.filter((one) => !one.box.hidden);
  if (busy()) for (const one of columns) one.stop();
  else for (const one of visible) tried(() => one.write(prompt.value), one.said);
});
two.addEventListener("change", () => {
  second.box.hidden = !two.checked;
  second.stop();
  second.close();
});
for (const range of [temperature, length]) {
  const shown = () => {
    range.previousElementSibling.textContent = figure(Number(range.value), 1);
  };
  range.addEventListener("input", shown);
  shown();
}

// ---- read

const shade = (cell, part) => {
  cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(part * 45)}%, transparent)`;
  return cell;
};
const header = (token, scope) => make("th", [word(token)], { scope });
let sentence = "";

async function look() {
  sentence = at("sentence").value;
  const { tokens, layers } = await asked("page/lens", { model: copy, text: sentence });
  const names = layers.map((_, layer) => make("th", layer ? figure(layer) : "قبلها", { scope: "col" }));
  const rows = tokens.map((token, n) => make("tr", [
    header(token, "row"),
    ...layers.map((said) => shade(make("td", [word(said[n][0]), make("small", ` ${percent(said[n][1])}`)]), said[n][1])),
  ]));
  const table = make("table", [make("thead", [make("tr", [make("th", "بعد", { scope: "col" }), ...names])]), make("tbody", rows)]);
  at("lens").replaceChildren(
    make("h2", "ماذا كان سيقول لو انتهى بعد كل طبقة"),
    make("div", [table], { class: "scroll", tabindex: 0, role: "region", "aria-label": "ما تقوله كل طبقة" }),
  );
  at("lens").hidden = false;
  await attend();
}

async function attend() {
  const { tokens, weights } = await asked("page/attention", {
    model: copy, text: sentence, layer: Number(at("layer").value), head: Number(at("head").value),
  });
  const rows = weights.map((row, n) => make("tr", [
    header(tokens[n], "row"),
    ...row.map((part, to) => (to <= n ? shade(make("td", figure(part * 100)), part) : make("td"))),
  ]));
  const head = [make("th", "٪", { scope: "col" }), ...tokens.map((token) => header(token, "col"))];
  at("weights").replaceChildren(make("thead", [make("tr", head)]), make("tbody", rows));
  at("attention").hidden = false;
}

async function find(wanted) {
  at("word").value = wanted;
  const found = await asked("page/word", { model: copy, word: wanted, text: at("sentence").value });
  const mean = found.probabilities.reduce((sum, part) => sum + part, 0) / found.probabilities.length;
  const best = found.probabilities.indexOf(Math.max(...found.probabilities));
  const near = found.nearest.map(([other, cosine]) => {
    const button = make("button", [word(other), make("small", ` ${figure(cosine, 2)}`)], { type: "button" });
    button.addEventListener("click", () => tried(() => find(/^[0-9]+$/.test(other) ? `"${other}"` : other)));
    return button;
  });
  at("found").replaceChildren(
    make("p", [
      make("b", [word(found.word)]), ` رقمه ${figure(found.id)}، حصته من الاحتمال في الجملة ${percent(mean)}، وأكثرها `,
      `${percent(found.probabilities[best])} بعد `, word(found.tokens[best]),
    ]),
    make("h2", "أقرب الكلمات"), make("div", near, { class: "words" }),
    make("h2", `سطره في جدول التضمين، طوله ${figure(found.norm, 2)}`), bars(found.row),
  );
  at("found").hidden = false;
}

/** A row's values as bars, up for those above zero. */
function bars(row) {
  const most = Math.max(...row.map(Math.abs)) || 1;
  const drawn = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const svg = drawn("svg", {
    viewBox: `0 0 ${row.length} 2`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${figure(row.length)} قيمة بين ${figure(Math.min(...row), 3)} و${figure(Math.max(...row), 3)}`,
  });
  svg.append(...row.map((value, x) => drawn("rect", {
    x: x + 0.1, y: value > 0 ? 1 - value / most : 1, width: 0.8, height: Math.abs(value) / most,
    class: value > 0 ? "more" : "less",
  })));
  return svg;
}

at("reading").addEventListener("submit", (event) => {
  event.preventDefault();
  tried(look);
});
at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  tried(() => find(at("word").value));
});
for (const id of ["layer", "head"]) at(id).addEventListener("change", () => tried(attend));

// ---- change

let queue = Promise.resolve();
/** Have the changes that `amend` makes of those so far, when one that is under way has been made. */
const change = (amend) => (queue = queue.then(() => tried(() => have(amend(edits)))));

/** Have these changes in place of those so far, and write the same text before and after them. */
async function have(wanted) {
  copy = wanted.length ? (await asked("page/change", { model: copy, edits: wanted })).model : "";
  edits = wanted;
  entitle();
  at("edits").replaceChildren(...edits.map(({ kind, word: row, factor, source, values, like }) => make("li", [
    word(row), ...{ scale: [` × ${figure(factor ?? 1, 3)}`], copy: [" كسطر ", word(source ?? "")],
      set: [` = ${figure(values?.length ?? 0)} قيمة`], add: [" كلمة جديدة", like?.length ? [": ", word(like.join(" + "))] : ""].flat() }[kind],
  ])));
  [at("undo").disabled, at("keep").hidden, at("kept").hidden] = [!edits.length, !edits.length, true];
  const drawn = { prompt: prompt.value, temperature: Number(temperature.value), top_k: 50, seed: 1, echo: true };
  const { ids } = await asked("page/ids", { text: prompt.value });
  drawn.max_tokens = Math.max(0, Math.min(Number(length.value), model.context - 1 - ids.length));
  for (const [id, name] of [["before", ""], ["after", copy]]) {
    const { choices } = await asked("v1/completions", { ...drawn, model: name });
    at(id).textContent = printable(choices[0].text);
  }
  if (copy && at("before").textContent === at("after").textContent) say("لم يتغيّر هذا النص.");
}

at("edit").addEventListener("submit", (event) => {
  event.preventDefault();
  const [kind, amount] = [at("kind").value, at("amount").value.trim()];
  const latin = amount.replace(/[٠-٩]/g, (digit) => digit.charCodeAt(0) - 0x660).replaceAll("٫", ".");
  const numbers = latin.split(/[\s,،]+/).map(Number);
  const like = amount.split(/[\s,،]+/).filter(Boolean);
  const given = { scale: { factor: numbers[0] }, copy: { source: amount }, set: { values: numbers }, add: { like } }[kind];
  const wanted = { kind, word: at("row").value, ...given };
  const bad = ["scale", "set"].includes(kind) && !numbers.every(Number.isFinite);
  change((before) => {
    if (bad) throw new Error(`${amount}: not a number`);
    return [...before, wanted];
  });
});
at("kind").addEventListener("change", () => {
  const kind = at("kind").value;
  [at("hint").hidden, at("amount").required] = [kind !== "add", kind !== "add"];
  at("amount").value = kind === "scale" ? "2" : "";
});
at("undo").addEventListener("click", () => change((before) => before.slice(0, -1)));
at("keep").addEventListener("submit", (event) => {
  event.preventDefault();
  tried(async () => {
    const { command } = await asked("page/keep", { model: copy, edits, folder: at("folder").value });
    at("kept").replaceChildren("حُفظ حيث بدأ الخادم. لاقتراحه: ", make("code", [make("bdi", command, { dir: "ltr" })]));
    at("kept").hidden = false;
  });
});

// ---- the parts, and the token

const tabs = [...document.querySelectorAll("[role=tab]")];
function turn(tab) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    at(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  tab.focus();
  at("sentence").value ||= prompt.value;
}
for (const tab of tabs) {
  tab.addEventListener("click", () => turn(tab));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
    if (by) turn(tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length]);
  });
}
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("token").value;
  tried(open);
});
tried(open);
