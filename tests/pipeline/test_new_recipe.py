"""The recipe that `qalam init` writes, and vocabularies whose size the text decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from al_qalam.flows.recipes import included_recipe
from qalam_core.corpus.detect import Detected
from qalam_core.corpus.sources import resolve
from qalam_core.errors import CorpusError, RecipeError
from qalam_core.pipeline import new_recipe as module
from qalam_core.pipeline.build import InPlace, build, ingested, tokenized
from qalam_core.pipeline.new_recipe import new_recipe
from qalam_core.pipeline.vocab import LARGEST, SMALLEST, VocabFacts, fitting
from qalam_core.recipe import Recipe, Source, to_toml
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe

BASE = tiny_recipe(Path("x"), train={"steps": 1000, "batch_size": 32})


def recipe_for(size: int, documents: int, shortest: int = 50, chosen: str = "") -> Recipe:
    """The recipe for a text of so many bytes."""
    source = Source(path="texts")
    found = Detected(source, "plain text", size, documents, shortest, repair=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "detect", lambda _: found)
        made = new_recipe(BASE, "mine", [source], Path.cwd(), chosen)
    assert all("\n" not in note for note in made.notes)
    return made.recipe


@pytest.mark.parametrize("documents_per_mb", [100, 2_000, 20_000])
def test_the_settings_fit_a_text_of_every_size(documents_per_mb: int) -> None:
    before = 0
    for exponent in range(3, 11):
        size = 10**exponent
        recipe = recipe_for(size, max(3, size * documents_per_mb // 1_000_000))
        corpus, train = recipe.corpus, recipe.train
        assert before <= train.steps <= 1000
        before = train.steps
        assert corpus.validation + corpus.test < 0.31
        held_out = size * corpus.validation / module.BYTES_PER_TOKEN
        assert not train.patience or held_out > 2 * recipe.model.max_seq_len  # training refuses it otherwise
        assert size * 0.7 / module.BYTES_PER_TOKEN >= 2 * recipe.model.max_seq_len
        assert train.validate_every <= train.steps
        assert train.threads == 1 or recipe.model == BASE.model
        assert recipe.tokenizer.vocab_size == "auto"


def test_a_text_that_cannot_be_split_is_refused_at_once() -> None:
    with pytest.raises(CorpusError, match="the text is 2 documents, and 3 are needed"):
        recipe_for(5000, 2)


def test_documents_of_any_length_are_kept() -> None:
    """A length of which nineteen in twenty are is not too short."""
    for shortest in (1, 4, 5, 12, 19, 20, 500):
        assert recipe_for(100_000, 1000, shortest).corpus.min_chars <= shortest
    assert recipe_for(100_000, 1000, 500).corpus.min_chars == 20


def test_a_size_that_was_chosen_is_kept() -> None:
    assert recipe_for(50_000, 100).model != BASE.model
    assert recipe_for(50_000, 100, chosen="small").model == BASE.model


def test_data_sets_on_the_hub_are_not_looked_at() -> None:
    source = Source(path="hf:owner/texts", revision="PIN")
    made = new_recipe(BASE, "mine", [source], Path.cwd())
    assert made.recipe.corpus.sources == (source,)
    assert made.notes == []
    assert "revision" in to_toml(made.recipe)


# -- the vocabulary ---------------------------------------------------------------------------------


def test_auto_grows_with_the_text_in_powers_of_two() -> None:
    sizes = [fitting(10**exponent) for exponent in range(12)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (SMALLEST, LARGEST)
    assert all(size.bit_count() == 1 for size in sizes)


@pytest.mark.parametrize("algorithm", ["bpe", "word"])
def test_a_vocabulary_size_is_a_ceiling(
    algorithm: str, corpus_file: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def entries(size: int | str) -> int:
        recipe = tiny_recipe(corpus_file, tokenizer={"vocab_size": size, "algorithm": algorithm})
        executor = InPlace(store)
        documents = ingested(recipe, resolve(recipe.corpus.sources), executor)
        return tokenized(recipe, documents, executor).tokenizer.facts(VocabFacts).entries

    most = entries(50_000)
    assert most < 50_000
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"the vocabulary has {most:,} entries instead of 50,000" in line
    assert "\n" not in line
    assert entries("auto") == min(most, fitting(100_000))
    assert entries(most - 1 if most > 260 else 260) <= most


@pytest.mark.parametrize("value", [259, 0, -1, "atuo", "8000", 300.5, True, None, []])
def test_other_sizes_are_refused_in_one_line(value: object) -> None:
    with pytest.raises(RecipeError, match=r'tokenizer.vocab_size: must be "auto" or a whole number of at least 260'):
        tiny_recipe(Path("x"), tokenizer={"vocab_size": value})


# -- from a text to a model -------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_a_small_text_becomes_a_model_with_no_edit(tmp_path: Path, store: Store) -> None:
    (tmp_path / "texts.txt").write_bytes("\r\n".join(sentences(60)).encode("cp1256"))
    base = Recipe.load(included_recipe("small"))
    made = new_recipe(base, "mine", [Source(path=str(tmp_path / "texts.txt"))], tmp_path)
    (tmp_path / "mine.toml").write_text(to_toml(made.recipe), encoding="utf-8")
    published = build(Recipe.load(tmp_path / "mine.toml"), store)
    assert published.record.bits_per_byte.model < published.record.bits_per_byte.unigram
    assert not {"integrity", "unigram", "samples"} & {c.name for c in published.verdict.checks if not c.passed}
