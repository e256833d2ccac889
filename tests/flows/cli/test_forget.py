"""`qalam forget`: a model that never read some texts, from the last run that had not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.pipeline.build import build
from qalam_core.recipe import Recipe, to_toml
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe
from tests.flows.cli.command import qalam
from tests.flows.processes import qalam as qalam_process
from tests.pipeline.test_lineage import split, write


def test_forgetting_begins_with_the_last_run_that_had_not_read_it(api: str, tmp_path: Path) -> None:
    texts = sentences(480)
    train = {"start": "champion", "steps": 20, "checkpoint_every": 20}
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

    forget = ("forget", tmp_path / "tiny.toml", "--exclude", tmp_path / "forget.txt", "--store", store.root)
    done = qalam_process(*forget, PREFECT_API_URL=api)
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
    assert not seen.meets(pa.array([late])).read.any()
    (tmp_path / "more.txt").write_text(f"{late}\na text that nobody has ever read\n", encoding="utf-8")
    recipe_file = tmp_path / "tiny.toml"
    named = f"corpus.exclude={tmp_path / 'forget.txt'}"
    again = qalam("forget", recipe_file, "--exclude", tmp_path / "more.txt", "--set", named, "--store", store.root)
    assert again.returncode == 2
    assert "forget.txt already, whose texts would be read again" in again.stderr
    (tmp_path / "ids.txt").write_text(hashlib.sha256(late.encode()).hexdigest()[:16], encoding="utf-8")
    changed = ("--set", "corpus.normalisation=search")
    by_id = qalam("forget", recipe_file, "--exclude", tmp_path / "ids.txt", *changed, "--store", store.root)
    assert by_id.returncode == 2
    assert "has ids, which depend on the normalisation" in by_id.stderr
    rejected = qalam("corpus", "--rejects", "excluded", "--store", store.root)
    assert late[:40] in rejected.stdout


def test_a_bad_exclusion_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(to_toml(Recipe.load(Path("deployments/recipes/demo.toml"))), encoding="utf-8")
    done = qalam("forget", tmp_path / "tiny.toml", "--exclude", tmp_path / "none.txt", "--store", tmp_path)
    assert done.returncode == 2
    assert "there is no file" in done.stderr
