"""The HTML report: self-contained, safe with hostile names, and rendered by a real browser."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.evaluation.evaluate import evaluate
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Piece, Sample, TensorStatistics
from qalam_core.pipeline.build import build
from qalam_core.pipeline.publish import render_page
from qalam_core.recipe import Recipe, Requirements
from qalam_core.reports import plots
from qalam_core.reports.page import page
from qalam_core.reports.tables import headline
from qalam_core.runs import Runs, SeenFacts
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe
from tests.evaluation.small_report import BUDGETS
from tests.flows.processes import qalam
from tests.reports.small_reports import CORPUS, COUNTS, record, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '<img src="https://example.org/x.png" onerror=alert(1)>'


class Parsed(HTMLParser):
    """The page's tags, and the targets of its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.places: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.places += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]


class Run:
    def __init__(self, folder: Path) -> None:
        """Two sources, one with a hostile name; and a second run, compared with the champion."""
        texts = sentences(300, 3)
        for name, part in (("a", texts[:200]), ("b", texts[200:])):
            lines = (json.dumps({"text": text}, ensure_ascii=False) for text in part)
            (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        sources = [{"path": str(folder / "a.jsonl"), "name": HOSTILE}, {"path": str(folder / "b.jsonl"), "name": "قصص"}]
        plain = tiny_recipe(folder / "a.jsonl", train={"steps": 40}).model_dump()
        recipe = Recipe.parse({**plain, "corpus": {**plain["corpus"], "sources": sources, "test": 0.2}})
        self.store = Store(folder / "store")
        self.runs = Runs(self.store)
        build(recipe, self.store)
        weaker = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": 30})})
        self.published = build(weaker, self.store)
        self.run, self.folder = self.published.run, self.published.folder

    @property
    def file(self) -> Path:
        return self.folder / "report.html"


@pytest.fixture(scope="session")
def run(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("page"))


def test_the_page_refers_to_no_other_file(run: Run) -> None:
    text = run.file.read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert not parsed.tags & {"script", "iframe", "object", "embed", "img", "image", "video", "audio", "base", "form"}
    assert parsed.places
    # the review is beside it, and is the only other page
    assert all(place.startswith(("#", "data:")) or place == "review.html" for place in parsed.places), parsed.places
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert HOSTILE not in text
    assert text.count("<svg ") == 5
    assert str(run.store.root) not in text


def test_the_page_states_everything(run: Run) -> None:
    text = re.sub("</?bdi>", "", html.unescape(run.file.read_text(encoding="utf-8")))
    record = run.runs.record(run.run)
    for heading in ("Checks", "Training", "What it writes", "Data", "Tokenizer", "Lineage", "Details"):
        assert f"<h2>{heading}</h2>" in text
    for digests in record.artifacts.values():
        assert all(digest in text for digest in digests)
    assert record.incumbent in text
    assert f"qalam reproduce {run.run}" in text
    assert f"qalam serve {run.run} has a page" in re.sub("</?code>", "", text)
    assert all(check.message in text for check in record.verdict.checks)
    sentence = headline(run.run, record)
    assert text.count(sentence) == 2
    assert re.fullmatch(rf"{run.run}: \S.*, [0-9.]+ bits per byte, [0-9.]+% (better|worse) than the champion", sentence)
    assert run.published.verdict.comparison is not None
    assert f"{run.published.verdict.comparison.overall.champion:.4f}" in text
    assert 'dir="rtl" lang="ar"' in text
    assert re.search(r'class="piece heat-[0-4]" title="[0-9.]+%">', text)
    assert "embedding.weight" in text


def test_the_page_is_the_same_every_time(run: Run) -> None:
    assert render_page(run.runs, run.run) == run.file.read_text(encoding="utf-8")


def test_what_was_garbage_collected_is_omitted(run: Run, tmp_path: Path) -> None:
    elsewhere = Runs(Store(tmp_path))
    elsewhere.copy_from(run.runs, run.run)
    text = render_page(elsewhere, run.run)
    assert "was deleted from the store" in text
    assert text.count("<svg ") == 1


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Runs:
    """A copy of the store, for a run whose files a test changes."""
    shutil.copytree(run.store.root, tmp_path / "store")
    return Runs(Store(tmp_path / "store"))


def reported(runs: Runs, run: str, report: str) -> None:
    """Another report of a run, as if it was published with it."""
    record = runs.record(run).model_copy(update={"files": {}})
    (runs.folder(run) / "run.json").write_bytes(record.to_json())
    (runs.folder(run) / "report.json").write_text(report, encoding="utf-8")


def test_a_package_that_cannot_be_read_is_reported(run: Run, copy: Runs, tmp_path: Path) -> None:
    folder = copy.folder(run.run)
    (folder / "model" / "weights.py").write_text("import os\n", encoding="utf-8")
    report, _ = evaluate(
        folder / "model", tmp_path / "none.safetensors", [("a", "نص")], [], [], seen=Fingerprints.of([]),
        seed=1, prompts=(), confidence=0.95, storage="f32", normalisation=(),
    )  # fmt: skip
    reported(copy, run.run, report.model_dump_json())
    text = render_page(copy, run.run)
    assert "The package cannot be read: weights.py" in html.unescape(text)
    assert str(tmp_path) not in text


def test_a_diverged_model_has_a_page(run: Run, copy: Runs) -> None:
    """Its figures are NaN, which is text in JSON."""
    folder = copy.folder(run.run)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for part in (report["overall"], *report["sources"].values()):
        part["bits_per_byte"]["model"] = "NaN"
        part["intervals"]["model"] = {"low": "NaN", "high": "NaN"}
    report["samples"] = []
    reported(copy, run.run, json.dumps(report))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record["verdict"]["checks"][1]["value"] = "NaN"
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    text = render_page(copy, run.run)
    assert "<b>nan</b>" in text
    assert 'id="bits-' not in text


LONG = "قصص <b>&amp;</b> 12, " * 16
WEIGHTS = TensorStatistics(shape=(64, 64), mean=0.0, std=0.1, minimum=-1.0, maximum=1.0)
METRICS = [{"step": 20, "loss": 6.5, "learning_rate": 0.01, "gradient_norm": 0.3}, {"step": 40, "loss": math.nan}]


@pytest.fixture(scope="module")
def large() -> str:
    """The page of a run with many long names, many samples, a figure of NaN, and one point of each curve."""
    made = report()
    part, diverged = made.overall, made.overall.bits_per_byte.model_copy(update={"model": math.nan})
    names = [*(f"{LONG}{number}" for number in range(59)), "all"]
    counts = dict.fromkeys(names, COUNTS)
    pieces = tuple(Piece(text=text, probability=chance) for text, chance in ((" بي", 0.5), ("ت", 0.00001), (".", 0.02)))
    made = made.model_copy(
        update={
            "sources": {**dict.fromkeys(names, part), "nan": part.model_copy(update={"bits_per_byte": diverged})},
            "samples": (Sample(prompt="في", text="في بيت.", pieces=pieces),) * 40,
            "tensors": dict.fromkeys((f"blocks.{number}.w" for number in range(300)), WEIGHTS),
        }
    )
    kept = record(
        decide(made, BUDGETS, Requirements(), None), made, SeenFacts(own=dict.fromkeys(names, 9), lineage={}, gone={})
    )
    return page("demo-0123", kept, made, CORPUS.model_copy(update={"sources": counts}), METRICS, None)


def test_a_large_page(large: str) -> None:
    Parsed(large)
    assert "<b>&amp;" not in large
    for table in re.findall(r"<table.*?</table>", large, flags=re.DOTALL):
        assert len({len(re.findall(r"<t[dh][ >]", row)) for row in table.split("</tr>")[:-1]}) == 1
    documents = large[large.index("Documents by source") :].split("</table>")[0]
    assert documents.count("<tr>") == 62, "one row for each of many sources"
    assert "the 11 largest of 61 slices" in large
    assert "<summary>32 more samples</summary>" in large
    assert "Gradient norm at step 20, and only there: 0.3." in large
    assert large.count("<svg ") == 2
    assert max(len(line) for line in re.findall(r"<text[^>]*>([^<]*)", large)) < 60


def test_probabilities_are_text(large: str) -> None:
    """Not only in colours, nor only for a pointer."""
    unlikely = (
        '<bdi dir="rtl" lang="ar">بي<b>ت</b>.</bdi> below 0.01%, <bdi dir="rtl" lang="ar">بيت<b>.</b></bdi> 2.00%</p>'
    )
    assert large.count(unlikely) == 40


def test_names_from_right_to_left_are_isolated(large: str) -> None:
    assert "540 documents: <bdi>قصص</bdi> &lt;b&gt;" in large
    ours = re.sub(r"<(style|svg|bdi|pre)[ >].*?</\1>|<p class=.sample.*?</p>", "", large, flags=re.DOTALL)
    assert not re.search("[\u0590-\u08ff]", ours)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_can_be_read(scheme: str) -> None:
    """WCAG's contrast of at least 4.5 of text, and 3 of marks, with what is behind them."""
    style = (Path(plots.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    start = {"light": ":root", "dark": "(prefers-color-scheme: dark)", "print": "@media print"}[scheme]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+);", style[style.index(start) :].split("}")[0]))

    def luminance(name: str) -> float:
        digits = colours[name][1:]
        digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
        parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for behind in ("paper", "card"):
        for name in ("ink", "soft", "good", "bad", *(f"plot-{number}" for number in range(1, 6))):
            least = 3 if name in ("plot-3", "plot-4", "plot-5") else 4.5
            low, high = sorted((luminance(name), luminance(behind)))
            assert (high + 0.05) / (low + 0.05) >= least, (name, behind)


def test_plots_use_the_colours_of_the_page() -> None:
    drawn = plots.funnel({"read": 10, "<b>": 3, "kept": 7})
    assert drawn == plots.funnel({"read": 10, "<b>": 3, "kept": 7})
    assert "var(--ink)" in drawn
    assert "&lt;b&gt;" in drawn
    assert "<b>" not in drawn
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", drawn)
    assert "<metadata" not in drawn


@pytest.mark.usefixtures("processes")
def test_report_prints_its_path_and_writes_a_missing_one(run: Run, tmp_path: Path) -> None:
    shown = qalam("report", run.run, "--store", run.store.root)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip() == str(run.file)
    copy = qalam("report", run.run, "--store", run.store.root, "--out", tmp_path / "copy.html")
    assert copy.returncode == 0
    assert (tmp_path / "copy.html").read_bytes() == run.file.read_bytes()


# -- in a browser -----------------------------------------------------------------------------------

PROBE = """<script>
addEventListener("load", () => {
  const samples = [...document.querySelectorAll(".sample")];
  const first = samples[0].querySelector(".piece").getBoundingClientRect();
  const style = getComputedStyle(samples[0]);
  document.documentElement.dataset.found = JSON.stringify({
    direction: samples.map(s => getComputedStyle(s).direction),
    startsRight: samples[0].querySelector(".prompt").getBoundingClientRect().right > first.right,
    font: style.fontFamily,
    reachable: [...document.querySelectorAll(".scroll")].every(s => s.tabIndex === 0 && s.ariaLabel),
    overflow: document.documentElement.scrollWidth - innerWidth,
    plots: [...document.querySelectorAll("svg.plot")].map(s => s.getBoundingClientRect().width),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector("svg.plot text")).fill,
    width: innerWidth,
  });
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
@pytest.mark.usefixtures("processes")
def test_a_browser_shows_it(run: Run, tmp_path: Path, width: int, dark: bool) -> None:
    text = run.file.read_text(encoding="utf-8")
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", PROBE + "</body>")
    assert "Content-Security-Policy" not in probed
    for name, content in (("report.html", text), ("probed.html", probed)):
        (tmp_path / name).write_text(content, encoding="utf-8")

    def browse(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--enable-logging=stderr", f"--window-size={width},900", "--virtual-time-budget=2000",
             f"--blink-settings=preferredColorScheme={int(not dark)}", "--dump-dom", (tmp_path / name).as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip

    assert "CONSOLE" not in browse("report.html").stderr
    dom = browse("probed.html").stdout
    match = re.search(r'data-found="([^"]*)"', dom)
    assert match, dom[:500]
    found = json.loads(html.unescape(match[1]))
    assert found["direction"] == ["rtl"] * 3
    assert found["startsRight"]
    assert "Naskh" in found["font"]
    assert found["reachable"], "a table that scrolls cannot be reached by the keyboard, or has no name"
    assert found["overflow"] <= 0, "the page scrolls horizontally"
    assert len(found["plots"]) == 5
    assert all(200 < plot <= found["width"] for plot in found["plots"])
    assert found["background"] == ("rgb(23, 22, 20)" if dark else "rgb(253, 252, 249)")
    assert found["ink"] == ("rgb(236, 232, 223)" if dark else "rgb(29, 28, 26)")
