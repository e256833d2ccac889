"""A package as one HTML file: what is in it, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import ModelConfig, read
from qalam_core.package.interop.browser_page import SCRIPTS, export_page, source
from qalam_core.package.interop.storage import convert
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import Tokenizer
from tests.browsers import CHROMIUM, ENGINES, UNNAMED, browse, evaluate, probe
from tests.conftest import Built
from tests.package.conftest import trained_tokenizer
from tests.small_package import WORDS, contents, edit, export, vocabulary, writer

HOSTILE = '</script><!--<script>alert("x")</script>'
LLAMA: dict[str, Any] = {
    "block": "llama", "num_kv_heads": 2, "head_dim": 6, "hidden_dim": 50, "rope_base": 500.0, "norm_epsilon": 1e-5,
    "qk_norm": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "original": {},
    "original, untied": {"tied": False, "activation": "gelu_tanh"},
    "llama": {**LLAMA, "qk_norm": True},
    "llama, untied": {**LLAMA, "tied": False},
}


class Parsed(HTMLParser):
    """The page's policy, the addresses in it, and the text of each script and style."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.policy, self.addresses = "", list[str]()
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[name] or "" for name in ("src", "href", "srcset", "action") if name in given]
        assert not [name for name in given if name.startswith("on") or name == "style"]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag in ("script", "style"):
            self.texts.append((tag, given, ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            tag, given, text = self.texts.pop()
            self.texts.append((tag, given, text + data))

    def files(self) -> dict[str, str]:
        return {str(given["id"]): json.loads(text) for _, given, text in self.texts if "type" in given}


def random_package(folder: Path, shape: dict[str, Any], **more: Any) -> Path:
    """Dimensions that four does not divide, a context that 200 tokens exceed."""
    tokenizer = trained_tokenizer("bpe")
    config = ModelConfig(vocab_size=len(tokenizer), dim=30, num_heads=6, num_layers=2, max_seq_len=64, **shape)
    return export(folder, config=config, vocabulary=tokenizer.vocabulary, provenance={}, **more)


def test_a_page_is_the_packages_files_and_a_script_that_alone_may_run(tmp_path: Path) -> None:
    words = vocabulary(words=(*WORDS[:-2], HOSTILE, "\\u2028"))
    package = export(tmp_path / "model", vocabulary=words, card=f"# {HOSTILE}", dtype="f16")
    export_page(package, tmp_path / "new" / "model.html")
    export_page(package, tmp_path / "again.html")
    text = (tmp_path / "new" / "model.html").read_bytes()
    assert text == (tmp_path / "again.html").read_bytes()
    page = Parsed(tmp_path / "again.html")
    assert page.addresses == ["data:,"]
    digests = re.findall(r"sha256-([^']*)'", page.policy)
    found = [text.encode() for _, given, text in page.texts if "type" not in given]
    assert sorted(digests) == sorted(base64.b64encode(hashlib.sha256(one).digest()).decode() for one in found)
    assert page.policy.startswith("default-src 'none'; ")
    assert not {"unsafe", "http", "*"} & set(re.split(r"[-:; ']", page.policy))
    stored = {name: content.decode() for name, content in contents(package).items()}
    assert page.files() == {name: stored[name] for name in ("config.py", "vocab.py", "weights.py")}


def test_a_page_is_stored_as_the_package_but_i8_for_f32(tmp_path: Path) -> None:
    def kind(package: Path, dtype: str | None = None) -> str:
        page = tmp_path / f"{package.name}-{dtype}.html"
        export_page(package, page, dtype)
        return re.findall(r'"([a-z0-9]+)", \(12, 8\)', Parsed(page).files()["weights.py"])[0]

    plain, half = export(tmp_path / "f32"), export(tmp_path / "f16", dtype="f16")
    assert [kind(plain), kind(half)] == ["i8", "f16"]
    assert [kind(plain, "f32"), kind(plain, "f16"), kind(half, "q8")] == ["f32", "f16", "q8"]
    convert(plain, tmp_path / "i8", "i8")
    edit(tmp_path / "i8" / "config.py", "DIM", "\nDIM")  # an edit that is not sealed is in the page
    export_page(tmp_path / "i8", tmp_path / "edited.html")
    assert "\n\nDIM" in Parsed(tmp_path / "edited.html").files()["config.py"]


def test_many_weights_files_are_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_LIMIT", 2000)
    package = export(tmp_path / "model", dtype="i8")
    export_page(package, tmp_path / "model.html")
    names = {path.name for path in package.glob("weights*.py")} - {"weights_reader.py"}
    assert len(names) > 2
    assert Parsed(tmp_path / "model.html").files().keys() == {"config.py", "vocab.py", *names}


def test_what_cannot_be_a_page_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = export(tmp_path / "model")
    (tmp_path / "there.html").write_text("mine")
    for out, dtype, reason in (
        ("there.html", None, "exists"), ("there.html/x.html", None, "name another"), ("x.html", "f8", "known are"),
    ):  # fmt: skip
        with pytest.raises(PackageError, match=reason) as caught:
            export_page(package, tmp_path / out, dtype)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("qalam_core.package.interop.browser_page.MOST_BYTES", 100)
    with pytest.raises(PackageError, match="at most 100"):
        export_page(package, tmp_path / "x.html")
    edit(package / "config.py", "DIM", "DIMENSION")
    with pytest.raises(PackageError, match="not a setting"):
        export_page(package, tmp_path / "x.html")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "there.html"}
    assert (tmp_path / "there.html").read_text() == "mine"


def test_the_runtime_is_short_and_has_no_references() -> None:
    """At most 500 lines of code read a package and run it; the screen is not among them."""
    runtime = [name for name in SCRIPTS if name != "screen.js"]
    lines = [line.strip() for name in runtime for line in source(name).split("\n")]
    assert sum(bool(line) and not line.startswith(("//", "/*", "*")) for line in lines) <= 500
    for name in SCRIPTS:
        assert not re.search(r"\b(fetch|XMLHttpRequest|import|require|eval|innerHTML|document\.write)\b", source(name))
        assert not {"</script", "<!--"} & set(re.findall(r"</script|<!--", source(name)))
        assert max(map(len, source(name).split("\n"))) <= 120


SAMPLE = """(() => {
  let [draws, counts] = [0, new Array(60).fill(0)];
  Math.random = () => (draws++ + 0.5) / data.draws;
  for (let draw = 0; draw < data.draws; draw++) counts[sample(Float32Array.from(data.logits), data.temperature)]++;
  return counts;
})()"""


@pytest.mark.skipif(not ENGINES, reason="neither chromium nor node on this machine")
@pytest.mark.usefixtures("processes")
def test_a_token_is_drawn_from_the_50_likeliest_by_its_probability(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=60).astype(np.float32)
    for temperature in (0.5, 1.3, 0):
        given = {"logits": logits.tolist(), "temperature": temperature, "draws": 2000}
        scripts = [source("reader.js"), source("model.js")]
        drawn = np.array(evaluate(ENGINES[-1], tmp_path, scripts, SAMPLE, given))
        powers = np.exp(logits / temperature) if temperature else (logits == logits.max()).astype(float)
        powers[np.argsort(logits)[:10]] = 0
        assert np.abs(drawn - 2000 * powers / powers.sum()).max() <= 1.01
        assert np.count_nonzero(drawn) <= 50


GREEDY = """
const begin = "القط يأكل";
const ids = [opened.tokenizer.roles.START, ...opened.tokenizer.encode(begin)];
const since = performance.now();
const greedy = [...generate(opened.model, ids, -1, 200, 0)];
found({ids, greedy, text: opened.tokenizer.decode([...ids, ...greedy])});
"""


def check_greedy(package: Path, folder: Path) -> None:
    """200 greedy tokens in a page are those of numpy, which goes on at <END> too; the page holds i8."""
    export_page(package, folder / "model.html")
    convert(package, folder / "i8", "i8")
    stored = read(folder / "i8")
    tokenizer = Tokenizer(stored.vocabulary)
    model = NumpyTransformer(stored.config, stored.weights)
    model.end_id = -1
    ids = [tokenizer.specials.start, *tokenizer.encode("القط يأكل")]
    wanted = model.generate([ids], 200, 0)[0].tolist()
    assert len(wanted) == len(ids) + 200
    given = probe(folder / "model.html", folder, GREEDY)
    assert given == {"ids": ids, "greedy": wanted[len(ids) :], "text": tokenizer.decode(wanted)}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_page_continues_a_text_as_numpy_does(tmp_path: Path, shape: str) -> None:
    check_greedy(random_package(tmp_path / "model", SHAPES[shape]), tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_page_of_a_trained_model_continues_a_text_as_numpy_does(built: Built, tmp_path: Path) -> None:
    check_greedy(built.published.folder / "model", tmp_path)


SCREEN = """
const key = (name) => prompt.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
const state = () => [button.textContent, given.textContent, more.textContent.length > 0, status.textContent];
const wait = (good) => new Promise((resolve) => {
  const look = () => (good() ? resolve() : setTimeout(look, 5));
  look();
});
(async () => {
  const opening = [button.disabled, status.textContent, document.activeElement === prompt];
  opened.tokenizer.roles.END = -1;  // a random model may end at once
  [prompt.value, temperature.value, length.value] = ["القط <b>يأكل</b>", 0, 20];
  key("Enter");
  const during = button.textContent;
  await wait(() => !writing);
  const first = state();
  const text = more.textContent;
  button.click();
  await wait(() => !writing);
  const again = more.textContent === text;
  [temperature.value, length.value] = [1, 400];
  await new Promise((resolve) => setTimeout(resolve, 100));  // this clock stands still while the page computes
  button.click();
  await wait(() => more.textContent);
  key("Escape");
  await wait(() => !writing);
  const last = state();
  opened.model.weights["ln_out.weight"].fill(1e300);  // no model has this, but logits may be as large
  button.click();
  await wait(() => !writing);
  const broken = state();
  const { scrollWidth, scrollHeight } = document.documentElement;
  const [{ backgroundColor }, { direction }] = [document.body, prompt].map((one) => getComputedStyle(one));
  found({ opening, during, first, again, last, broken, unnamed: UNNAMED,
    tags: given.children.length, paper: backgroundColor, direction,
    wide: scrollWidth - innerWidth, high: scrollHeight - innerHeight });
})();
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_page_is_used_by_keys_alone_on_one_screen(tmp_path: Path, width: int, dark: bool) -> None:
    export_page(random_package(tmp_path / "model", SHAPES["llama"]), tmp_path / "model.html")
    shown = browse(tmp_path / "model.html", tmp_path)
    assert "CONSOLE" not in shown.stderr
    assert "جاهز" in shown.stdout
    look = f"--blink-settings=preferredColorScheme={int(not dark)}"
    script, size = SCREEN.replace("UNNAMED", UNNAMED), f"--window-size={width},800"
    given = probe(tmp_path / "model.html", tmp_path, script, "--virtual-time-budget=60000", size, look)
    disabled, ready, focused = given["opening"]
    assert (disabled, focused, given["during"], given["direction"]) == (False, True, "قف", "rtl")
    assert ready.startswith("جاهز")
    button, prompt, more, status = given["first"]
    assert (button, prompt, more) == ("أكمل", "القط <b>يأكل</b>", True)
    assert re.search("الرموز: ٢٠،", status)
    assert given["again"]  # greedy
    count = int(re.findall("الرموز: ([٠-٩]+)", given["last"][3])[0])
    assert 0 < count < 400  # stopped
    assert given["broken"][0] == "أكمل"
    assert "logits are not finite" in given["broken"][3]
    assert given["tags"] == 0
    assert given["unnamed"] == []
    assert given["paper"] == ("rgb(23, 22, 20)" if dark else "rgb(253, 252, 249)")
    assert (max(given["wide"], 0), max(given["high"], 0)) == (0, 0)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.usefixtures("processes")
def test_a_damaged_page_says_what_is_wrong(tmp_path: Path) -> None:
    export_page(export(tmp_path / "model"), tmp_path / "model.html")
    edit(tmp_path / "model.html", "DIM = 8", "DIM = 9")
    shown = browse(tmp_path / "model.html", tmp_path).stdout
    assert re.search(r'<button id="go" disabled="">', shown)
    assert "config.py:" in shown
