"use strict";
// The page: reads the package in it, then continues what is typed, token by token.

const [form, prompt, given, more, status, button, temperature, length] = [
  "form", "prompt", "given", "more", "status", "go", "temperature", "length",
].map((id) => document.getElementById(id));
const figure = (value, digits = 0) => value.toLocaleString("ar-EG", { maximumFractionDigits: digits });
const pause = () => new Promise((resolve) => setTimeout(resolve));
let [opened, writing, stopped] = [null, false, false];

async function write({ model, tokenizer }) {
  const ids = [tokenizer.roles.START, ...tokenizer.encode(prompt.value)];
  const [found, since] = [[], performance.now()];
  [given.textContent, more.textContent] = [tokenizer.decode(ids), ""];
  const show = () => {
    more.textContent = tokenizer.decode([...ids, ...found]).slice(given.textContent.length);
    more.parentElement.scrollTop = more.parentElement.scrollHeight;
  };
  let shown = 0;
  for (const id of generate(model, ids, tokenizer.roles.END, Number(length.value), Number(temperature.value))) {
    found.push(id);
    if (performance.now() - shown < 30) continue;
    show();
    await pause();  // the screen is drawn, and keys are heard
    if (stopped) break;
    shown = performance.now();
  }
  show();
  const speed = found.length / ((performance.now() - since) / 1000);
  status.textContent = `الرموز: ${figure(found.length)}، في الثانية: ${figure(speed)}`;
}

async function start() {
  [writing, stopped, button.textContent, status.textContent] = [true, false, "قف", "يكتب…"];
  try {
    await write(opened);
  } catch (error) {
    status.textContent = `توقف النموذج: ${error.message}`;
  }
  [writing, button.textContent] = [false, "أكمل"];
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing) stopped = true;
  else start();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopped = true;
  if (event.key !== "Enter" || event.target !== prompt || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!writing) form.requestSubmit(button);
});
for (const range of [temperature, length]) {
  const show = () => {
    range.previousElementSibling.textContent = figure(Number(range.value), 1);
  };
  range.addEventListener("input", show);
  show();
}
try {
  const blocks = [...document.querySelectorAll("script[type='application/json']")];
  opened = openPackage(Object.fromEntries(blocks.map((block) => [block.id, JSON.parse(block.textContent)])));
  button.disabled = false;
  prompt.focus();
  status.dataset.seconds = performance.now() / 1000;  // since the page was asked for
  const parameters = figure(opened.config.PARAMETERS);
  status.textContent = `جاهز بعد ${figure(performance.now() / 1000, 1)} ث، عدد المعاملات: ${parameters}`;
} catch (error) {
  status.textContent = `لا يمكن فتح النموذج: ${error.message}`;
}
