"""`qalam forget`: a model that never read some texts, from the last run that had not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.pipeline.build import build
from qalam_core.recipe import Recipe, to_toml
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe
from tests.flows.cli.command import qalam
from tests.flows.processes import qalam as qalam_process
from tests.pipeline.test_lineage import split, write

pytestmark = pytest.mark.usefixtures("processes")


def test_forgetting_begins_with_the_last_run_that_had_not_read_it(tmp_path: Path) -> None:
    texts = sentences(480)
    train = {"warm_start": "champion", "steps": 20, "checkpoint_every": 20}
    recipe = tiny_recipe(write(tmp_path / "stories.jsonl", texts[:400]), train=train, gate={"tolerance": 0.9})
    store = Store(tmp_path / "store")
    first = build(recipe, store)
    write(tmp_path / "stories.jsonl", texts)
    second = build(recipe, store)
    assert second.record.parent == first.run
    corpus = store.artifact("prepare", second.record.artifacts["prepare"][0])
    late = next(text for text in split(corpus, "train") if text in texts[400:])
    (tmp_path / "forget.txt").write_text(late + "\n", encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(to_toml(recipe), encoding="utf-8")

    done = qalam_process("forget", tmp_path / "tiny.toml", "--exclude", tmp_path / "forget.txt", "--store", store.root)
    assert done.returncode == 0, done.stderr
    assert f"the weights of run {first.run}" in done.stdout
    assert f"to be deleted: {second.run}: has read 1 of them" in done.stdout
    assert f"to be deleted: {first.run}" not in done.stdout
    assert 'set exclude = "' in done.stdout
    champion = Runs(store).champion("tiny")
    assert champion not in (first.run, second.run, None)
    record = Runs(store).record(champion or "")
    assert record.lineage[0].run == first.run
    seen = Fingerprints.load(store.artifact("seen", record.artifacts["seen"][0]).path)
    import pyarrow as pa

    assert not seen.meets(pa.array([late])).read.any()
    rejected = qalam("corpus", "--rejects", "excluded", "--store", store.root)
    assert late[:40] in rejected.stdout


def test_a_bad_exclusion_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(to_toml(Recipe.load(Path("deployments/recipes/demo.toml"))), encoding="utf-8")
    done = qalam("forget", tmp_path / "tiny.toml", "--exclude", tmp_path / "none.txt", "--store", tmp_path)
    assert done.returncode == 2
    assert "there is no file" in done.stderr
