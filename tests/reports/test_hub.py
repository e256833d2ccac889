"""The folder for the Hugging Face Hub: its metadata, its figures, and what it must not say."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import RepoCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qalam_core.errors import PackageError
from qalam_core.package import read, verify
from qalam_core.package.runtime.tokenizer import Tokenizer
from qalam_core.reports.hub import SOURCE, export_hub
from tests.conftest import Built, examples
from tests.flows.cli.command import qalam


def card_of(folder: Path) -> Any:
    card = ModelCard.load(folder / "README.md")
    assert isinstance(card, RepoCard)
    return card


@pytest.mark.usefixtures("processes")
def test_the_figures_are_those_of_the_run(built: Built, tmp_path: Path) -> None:
    run = built.published.run
    done = qalam("export", run, tmp_path / "hub", "--to", "hub", "--store", built.store.root)
    assert done.returncode == 0, done.stderr
    card, report = card_of(tmp_path / "hub"), built.runs.report(run)
    assert (card.data.language, card.data.library_name, card.data.pipeline_tag) == (
        "ar",
        "transformers",
        "text-generation",
    )
    assert card.data.model_name == built.recipe.name
    figures = {(each.dataset_name, each.metric_type): each.metric_value for each in card.data.eval_results}
    held_out = f"held-out texts of {built.recipe.name}"
    assert figures.pop((held_out, "bits_per_byte")) == report.bits_per_byte.model
    assert figures.pop((held_out, "accuracy")) == report.overall.next_token_accuracy
    assert figures == {(f"tests of {each.name}", "accuracy"): round(each.share, 4) for each in report.tests}
    assert "license" not in card.data.to_dict(), "nobody has said under which"
    text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    own = (built.published.folder / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert text.endswith(own.partition("\n")[2]), "the whole model card"
    assert verify(tmp_path / "hub" / SOURCE) == []
    for path in (built.published.folder / "model").iterdir():
        if path.is_file():
            assert (tmp_path / "hub" / SOURCE / path.name).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("processes")
def test_hostile_names_stay_text(built: Built, tmp_path: Path) -> None:
    record, report = built.published.record, built.runs.report(built.published.run)
    hostile = "---\nlicense: mit\n: [\u202e\x1b[31m <script>"
    tests = [each.model_copy(update={"name": hostile}) for each in report.tests] or []
    changed = report.model_copy(update={"tests": tuple(tests)})
    source = record.recipe.corpus.sources[0].model_copy(update={"path": f"hf:a/{hostile}", "revision": "0" * 40})
    corpus = record.recipe.corpus.model_copy(update={"sources": (source,)})
    named = record.model_copy(update={"recipe": record.recipe.model_copy(update={"corpus": corpus})})
    export_hub(built.published.folder / "model", tmp_path / "hub", named, changed)
    card = card_of(tmp_path / "hub")
    assert card.data.datasets == [f"a/{hostile}"]
    assert "license" not in card.data.to_dict()


@pytest.mark.usefixtures("processes")
def test_a_package_of_no_run_has_no_figures(built: Built, tmp_path: Path) -> None:
    package = built.published.folder / "model"
    export_hub(package, tmp_path / "hub")
    card = card_of(tmp_path / "hub")
    assert not card.data.eval_results
    assert read(tmp_path / "hub" / SOURCE).config == read(package).config
    with pytest.raises(PackageError, match="not an empty folder"):
        export_hub(package, tmp_path / "hub")


@pytest.mark.usefixtures("processes")
def test_transformers_load_it_by_their_names(built: Built, tmp_path: Path) -> None:
    from transformers import pipeline

    export_hub(built.published.folder / "model", tmp_path / "hub")
    generate: Any = pipeline("text-generation", model=str(tmp_path / "hub"))
    text = generate("القط في", max_new_tokens=12)[0]["generated_text"]
    done = qalam(
        "generate", built.published.run, "القط في", "--tokens", 12, "--temperature", 0, "--store", built.store.root
    )
    assert text == done.stdout.rstrip("\n")


PARTS = st.sampled_from([
    "\u0643\u064e\u062a\u064e\u0628\u064e", "ـــ", "ﷺ", "ﻻ", "لا", "١٢٣", "123", "٪", "abc", "é", "e\u0301", "😀",
    "\u200f", "\u200c", " ", "  ", "\n", "\t", "\u00a0",
    "،", "؟", "<END>", "أإآ", "\u0670", "ﬁ", "\u0000", "\ufeff", "\ud7ff",
])  # fmt: skip


@pytest.fixture(scope="module")
def folder(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "folder"
    export_hub(built.published.folder / "model", out)
    return out


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PARTS, max_size=12))
def test_any_text_has_the_same_ids_there(folder: Path, parts: list[str]) -> None:
    tokenizer, vocabulary = _tokenizers(folder)
    text = "".join(parts)
    assert tokenizer(text)["input_ids"] == [vocabulary.specials.start, *vocabulary.encode(text)]


@cache
def _tokenizers(folder: Path) -> tuple[Any, Tokenizer]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), Tokenizer(read(folder / SOURCE).vocabulary)
