"""docs/conformance is what our reader says, and the page's reader, in JavaScript, says the same."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalam_core.package.interop.browser_page import source
from tests.browsers import ENGINES, evaluate
from tests.conformance import FILES, FOLDER, written

READER = ("reader.js", "checks.js", "model.js")
DRIVER = Path(__file__).parents[1] / "conformance.js"


def vectors() -> dict[str, Any]:
    return {Path(name).stem: json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in FILES}


def check(engine: str, folder: Path, old: str = "", new: str = "") -> list[str]:
    """What the reader in JavaScript fails, with `new` in place of `old` in its source."""
    text = "\n".join(map(source, READER))
    assert old in text
    scripts = [text.replace(old, new) if old else text, DRIVER.read_text(encoding="utf-8")]
    found: list[str] = evaluate(engine, folder, scripts, "failures(data)", vectors())
    return found


@pytest.mark.usefixtures("processes")  # no limit of time: thousands of texts are read
@pytest.mark.parametrize("name", FILES)
def test_the_vectors_are_what_our_reader_says(name: str) -> None:
    """After a change that is meant, `make golden` writes them again."""
    ours, stored = written(FILES[name]()), (FOLDER / name).read_text(encoding="utf-8")
    if name == "generating.json":  # other machines add in another order
        models = [json.loads(text)["vectors"] for text in (ours, stored)]
        logits = [[np.frombuffer(base64.b64decode(model.pop("logits")), "<f4") for model in some] for some in models]
        np.testing.assert_allclose(np.concatenate(logits[0]), np.concatenate(logits[1]), atol=1e-4)
        ours, stored = map(written, models)
    assert ours == stored


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("engine", ENGINES)
def test_the_reader_in_javascript_passes_every_vector(tmp_path: Path, engine: str) -> None:
    data = vectors()
    assert len(data["mutants"]["mutants"]) >= 2000
    assert len(data["reading"]["vectors"]) > 150
    assert check(engine, tmp_path) == []


@pytest.mark.skipif(not ENGINES, reason="neither chromium nor node on this machine")
@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("what", "old", "new"), [
    ("base64 whose last bits", "if (btoa(bytes) !== text)", "if (false)"),
    ("mutant", "!HIDDEN.test(text)", "true"),
    ("ids of", r" ?\p{N}{1,3}|", r" ?\p{N}+|"),
    ("ids of", 'modern("{1,3}")', 'modern("+")'),
    ("ids of", r"\s+(?!\S)|\s+`),", r"\s+`),"),
    ("ids of", r"[\r\n]*|\s*[\r\n]+|", r"[\r\n]*|"),
    ("ids of", "[sStTmMdDſ]", "[sStTmMdD]"),
    ("ids of", r" ?[\p{L}\p{M}]+|", r" ?\p{L}+|"),
    ("ids of", "p{White_Space}", "p{Zs}"),
    ("text of", '"utf-8", { ignoreBOM: true }).decode(Uint8Array', '"utf-8").decode(Uint8Array'),
    ("logits of", "ROPE_BASE ** (-at / half)", "ROPE_BASE ** (-at / HEAD_DIM)"),
    ("tokens of", "text.slice(-window)", "text.slice(1 - window)"),
])  # fmt: skip
def test_a_reader_with_a_mistake_does_not_pass(tmp_path: Path, what: str, old: str, new: str) -> None:
    """So nothing passes because nothing was looked at."""
    assert any(failed.startswith(what) for failed in check(ENGINES[-1], tmp_path, old, new))
