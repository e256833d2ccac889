"""Names, paths and texts of others go through every command and page, and are only text there: no markup, no formula,
no control of the terminal, no change of the direction of what is beside them."""

from __future__ import annotations

import html
import io
import json
import logging
import re
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.markdown import Markdown
from rich.table import Table

from al_qalam.flows.cli.terminal import Console, bars
from qalam_core import PureDynamicTransformer
from qalam_core.corpus.sources import resolve
from qalam_core.display import printable
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.pipeline.build import build
from qalam_core.pipeline.ingest import Ingest
from qalam_core.progress import Tracker
from qalam_core.recipe import Recipe, to_toml
from qalam_core.reports.render import cell, rtl
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe
from tests.flows.cli.command import qalam

MARKUP = "[/nope] [red]r[/] $x^$ $ *b* _i_ `c` | <b>&amp; ![i](http://e.org/i.png) :smile:"
CONTROLS = "\x1b[31mred\x1b[0m\x1b]0;title\x07 \ra\b \x9b1m \x85 \u202egnp.\u202c \u2067x \u2066y \u200f\u061c z"
ROOM = "[/b] $x^$ \x1b[2J\u202e"  # a folder's name


class Hostile(NamedTuple):
    store: Path
    recipe: Path
    run: str
    model: Path


@pytest.fixture(scope="module")
def hostile(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    room = tmp_path_factory.mktemp("hostile") / ROOM
    room.mkdir(parents=True)
    texts = sentences(300)
    sources = []
    for number, name in enumerate((MARKUP, CONTROLS)):
        lines = [*texts[number::2], "too <short> [/b]", f"English {MARKUP} {CONTROLS}"]
        file = room / f"{number} [u].jsonl"
        file.write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
        sources.append({"path": str(file), "name": name, "licence": name})
    data = tiny_recipe(room, train={"steps": 20}).canonical()
    recipe, store = room / "r.toml", room / "store"
    parsed = Recipe.parse({**data, "corpus": {**data["corpus"], "sources": sources}, "gate": {"prompts": [CONTROLS]}})
    recipe.write_text(to_toml(parsed), encoding="utf-8")
    assert Recipe.load(recipe) == parsed
    published = build(parsed, Store(store))
    shutil.copytree(published.folder / "model", room / "model")
    return Hostile(store, recipe, published.run, room / "model")


def harmless(text: str) -> str:
    """`text`, after it was found to hold nothing that is obeyed, but for isolates that are closed in their line."""
    for line in text.split("\n"):
        left = re.sub("[\u2067\u2068][^\u2066-\u2069]*\u2069", "", line)
        assert left == printable(left), ascii(line)
    return text


def test_a_build(hostile: Hostile, capsys: pytest.CaptureFixture[str]) -> None:
    """The bar and the line of a stage, with the reason why it was built, and a warning of the library."""
    recipe, store = Recipe.load(hostile.recipe, ["seed=8"]), Store(hostile.store)
    with bars(store, recipe) as terminal:
        for file in resolve(recipe.corpus.sources):
            stage = Ingest.of(file)
            Tracker(stage.label, stage.unit, terminal.moved)(1, 2)
            terminal.print_lines()
            terminal.finished(stage, replace(store.build(stage), cached=False))
        logging.getLogger("qalam_core.tests").warning("%s", MARKUP + CONTROLS)
    shown = harmless(capsys.readouterr().err)
    for name in (MARKUP, CONTROLS, MARKUP + CONTROLS):
        assert printable(name) in shown


def commands(hostile: Hostile) -> Iterator[tuple[object, ...]]:
    run, model, text = hostile.run, hostile.model, sentences(1)[0]
    yield "build", hostile.recipe
    yield "plan", hostile.recipe, "--set", "seed=8"
    yield from (("runs",), ("lineage", run), ("show", run), ("show", model), ("report", run), ("gc",))
    yield from (("show", run, "--full"), ("runs", "--json"), ("runs", "--name", CONTROLS))
    yield from (("corpus",), ("corpus", run), ("corpus", "--rejects", "min_arabic"))
    yield from (("find", text), ("trace", run, text), ("trace", run, f"{CONTROLS} {text}"))
    yield from (("generate", run, MARKUP, "--seed", 1), ("generate", run, CONTROLS, "--seed", 1))
    yield "promote", run, "--accept-refused", "--why", CONTROLS
    yield from (("verify", model), ("show", model, "--near", "قال"), ("show", model, MARKUP), ("show", CONTROLS))
    for name in (MARKUP, CONTROLS):
        yield from (("build", name), ("build", hostile.recipe, "--set", f"{name}=1"), ("find", f"@{name}"))
        yield from (("history", name), ("corpus", "--rejects", name), ("edit", model, "--row", name, "--scale", 2))
        yield from (("seal", model, "--note", name), ("deploy", hostile.recipe, "--notify", name), ("verify", name))


def test_every_command(hostile: Hostile) -> None:
    """Also the errors, which quote what was given."""
    for arguments in commands(hostile):
        done = qalam(*arguments, QALAM_STORE=str(hostile.store))
        harmless(done.stdout + done.stderr)
        assert done.stdout or done.stderr.startswith(("error: ", "Usage")), arguments


def test_names_are_shown_whole(hostile: Hostile) -> None:
    built = qalam("build", hostile.recipe, "--store", hostile.store)
    for name in (MARKUP, CONTROLS):
        assert printable(name) in built.stderr
    Runs(Store(hostile.store)).promote("other", hostile.run, when="2026-01-01", why=MARKUP + CONTROLS, who="[/who]")
    assert printable(MARKUP + CONTROLS) in qalam("history", "other", "--store", hostile.store).stdout


def test_json_has_the_names_as_they_are(hostile: Hostile) -> None:
    for arguments in (("corpus",), ("lineage", hostile.run), ("plan", hostile.recipe), ("find", sentences(1)[0])):
        done = qalam(*arguments, "--json", QALAM_STORE=str(hostile.store))
        assert harmless(done.stdout).count("\n") == 1
        json.loads(done.stdout)
    sources = json.loads(qalam("corpus", "--json", "--store", hostile.store).stdout)["sources"]
    assert set(sources) == {MARKUP, CONTROLS}


def test_tokens(tmp_path: Path) -> None:
    tokens = ("[/b]", "[red]", "$x^$", "\x1b[2J", "a\rb", "\u202ex", "\u2067")
    words = {word: number for number, word in enumerate((*SPECIALS, *tokens))}
    for name in "ab":
        PureDynamicTransformer(len(words), 8, 1, 1, 8).to_python_code(tmp_path / name, words)
    harmless(qalam("diff", tmp_path / "a", tmp_path / "b", "--prompt", "[red]").stdout)
    near = harmless(qalam("show", tmp_path / "a", "--near", "[red]").stdout)
    assert all(printable(token) in near for token in tokens if token != "[red]")
    for seed in range(9):
        harmless(qalam("generate", tmp_path / "a", "[/b]", "--seed", seed).stdout)


def test_pages(hostile: Hostile) -> None:
    folder = hostile.store / "runs" / hostile.run
    page = harmless((folder / "report.html").read_text(encoding="utf-8"))
    for name in (MARKUP, CONTROLS):
        assert f"<bdi>{html.escape(printable(name))}</bdi>" in page
    for file in (folder / "report.md", hostile.model / "MODEL_CARD.md"):
        text = harmless(file.read_text(encoding="utf-8"))
        assert cell(MARKUP) in text
        assert cell(CONTROLS) in text


def rendered(markdown: str) -> str:
    """What a reader of Markdown sees."""
    console = Console()
    console.file, console.width = io.StringIO(), 400
    console.print(Markdown(markdown))
    return console.file.getvalue().strip()


@pytest.mark.parametrize("text", [MARKUP, "# h", "- a", "+ a", "=", "~~s~~", "<https://e.org>", "a_b_c", "\\", "**x**"])
def test_markdown_shows_the_text_itself(text: str) -> None:
    assert rendered(cell(text)) == text
    assert rendered(rtl(text)).strip("\u2067\u2069") == text


def test_the_console_takes_no_string_as_markup() -> None:
    console = Console()
    console.file, console.width = io.StringIO(), 400
    table = Table(MARKUP)
    table.add_row(CONTROLS)
    console.print(MARKUP, table, CONTROLS)
    assert console.file.getvalue().count(printable(MARKUP)) == console.file.getvalue().count(printable(CONTROLS)) == 2
    assert not {unicodedata.category(char) for char in console.file.getvalue().replace("\n", "")} & {"Cc"}
