"""The duplicate join as stages: how many there are, and that the corpus does not depend on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qalam_core.corpus.sources import resolve
from qalam_core.pipeline.build import InPlace, ingested
from qalam_core.pipeline.match import Match, MatchSettings
from qalam_core.pipeline.plan import plan
from qalam_core.pipeline.prepare import Documents, Prepare
from qalam_core.progress import no_progress
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, Store
from tests.conftest import sentences, tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    found = sentences(200)
    (tmp_path / "all.txt").write_text("\n".join([*found, *found[:50]]) + "\n", encoding="utf-8")
    return tiny_recipe(tmp_path / "all.txt")


def documents(recipe: Recipe, store: Store) -> Documents:
    return ingested(recipe, resolve(recipe.corpus.sources), InPlace(store))


def partitions(found: Documents, store: Store, of: int) -> list[Artifact]:
    settings = (MatchSettings(partition=number, of=of) for number in range(of))
    return [store.build(Match(each, tuple(found.filtered))) for each in settings]


def test_a_small_corpus_has_one_and_there_are_fewer_than_groups() -> None:
    group = Artifact("filter", "0" * 64, Path())
    for groups, expected in ((1, 1), (15, 1), (16, 2), (63, 3), (64, 4), (62_500, 125)):
        stages = Match.all_of([group] * groups)
        assert [stage.settings.partition for stage in stages] == list(range(expected))
        assert {stage.settings.of for stage in stages} == {expected}
        assert len({stage.label for stage in stages}) == expected


def test_a_corpus_is_the_same_artifact_for_any_number_of_partitions(recipe: Recipe, tmp_path: Path) -> None:
    found = documents(recipe, Store(tmp_path / "one"))
    one = Store(tmp_path / "one").build(Prepare.of(recipe, found))
    assert one.manifest.facts["rejected"] == {"duplicate": 50}
    for of in (2, 7):
        store = Store(tmp_path / f"many-{of}")
        many = store.build(Prepare.of(recipe, found._replace(matches=partitions(found, store, of))))
        assert (many.digest, many.manifest) == (one.digest, one.manifest)


def test_nothing_is_prepared_without_all_matches_of_its_own_documents(recipe: Recipe, tmp_path: Path) -> None:
    """Duplicates would be kept."""
    store = Store(tmp_path / "store")
    found = documents(recipe, store)
    two = partitions(found, store, 2)
    (tmp_path / "more.txt").write_text("\n".join(sentences(20, seed=5)) + "\n", encoding="utf-8")
    other = documents(tiny_recipe(tmp_path / "more.txt"), store)
    for matches in ((), two[:1], two[::-1], [*two, *found.matches], other.matches):
        with pytest.raises(AssertionError, match="matches of other documents"):
            Prepare.of(recipe, found._replace(matches=matches)).run(tmp_path / "out", no_progress)
    Prepare.of(recipe, found._replace(matches=two)).run(tmp_path / "out", no_progress)


def test_a_plan_names_each_partition(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, all_of = Store(tmp_path / "store"), Match.all_of
    monkeypatch.setattr(
        Match, "all_of",
        lambda filtered: [replace(all_of(filtered)[0], settings=MatchSettings(partition=n, of=2)) for n in (0, 1)],
    )  # fmt: skip
    assert [row.label for row in plan(recipe, store).rows if row.stage == "match"] == ["match 1 of 2", "match 2 of 2"]
    documents(recipe, store)
    assert [row.action for row in plan(recipe, store).rows if row.stage == "match"] == ["reuse", "reuse"]
