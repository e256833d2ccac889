"""A stage is one frozen value: everything that its `run` reads is hashed."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from qalam_core.corpus.sources import resolve
from qalam_core.evaluation.results import Budgets, Report
from qalam_core.evaluation.sampling import held_out_sample
from qalam_core.filter_profiles import FILTER_PROFILES
from qalam_core.pipeline.build import STAGES, History, stages_in_order
from qalam_core.pipeline.evaluate import Evaluate, EvaluateSettings
from qalam_core.pipeline.filter import Filter
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.train import Train
from qalam_core.progress import no_progress
from qalam_core.recipe import Monitoring
from qalam_core.store import Artifact
from tests.conftest import COLD, Built
from tests.evaluation.small_report import BUDGETS, report


class Recorder:
    """An executor that reuses the built store, and records the stages that it is given."""

    def __init__(self, built: Built) -> None:
        self.built = built
        self.stages: list[Stage] = []

    def run(self, stage: Stage) -> Artifact:
        self.stages.append(stage)
        found = self.built.store.find(stage.identity)
        assert found is not None, stage.label
        return found

    def map(self, stages: list[Stage]) -> list[Artifact]:
        return [self.run(stage) for stage in stages]


@pytest.fixture
def stages(built: Built) -> list[Stage]:
    recorder = Recorder(built)
    stages_in_order(built.recipe, resolve(built.recipe.corpus.sources), History(built.runs), recorder)  # type: ignore[arg-type]
    return recorder.stages


def test_every_stage_is_in_the_order_once(stages: list[Stage]) -> None:
    assert tuple(dict.fromkeys(type(stage) for stage in stages)) == COLD
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    files = {path.stem for path in Path(Filter.__module__.replace(".", "/")).parent.glob("*.py")}
    assert {stage.name for stage in STAGES} <= files or not files  # one file a stage, of its name


def test_all_fields_of_a_stage_are_hashed(stages: list[Stage]) -> None:
    """Its fields are its settings and inputs, and `run` gets nothing else; a few are exempt."""
    exempt = {(type(stage).name, part.name) for stage in stages for part in fields(stage)
              if not part.metadata.get("hashed", True)}  # fmt: skip
    assert exempt == {
        ("train", "monitoring"), ("evaluate", "device"), ("filter", "slice"), ("gate", "device"),
        ("vocab", "run_of_earlier"), ("vocab", "read_shards"), ("prepare", "matches"), ("prepare", "folds"),
        ("train", "corpus"),
    }  # fmt: skip
    for stage in stages:
        identity = stage.identity
        assert identity.settings == stage.settings.canonical()
        inputs = [part for part in fields(stage) if part.name != "settings" and part.metadata.get("hashed", True)]
        for part in inputs:
            value = getattr(stage, part.name)
            count = len(value) if isinstance(value, tuple) else value is not None
            assert sum(name.startswith(part.name) for name in identity.inputs) >= count, (stage.name, part.name)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # "other" is of another type than most settings
def test_every_setting_and_input_changes_the_digest(stages: list[Stage]) -> None:
    for stage in stages:
        for key in type(stage.settings).model_fields:
            changed = replace(stage, settings=stage.settings.model_copy(update={key: "other"}))
            assert changed.identity.digest != stage.identity.digest, (stage.name, key)
        for part in fields(stage):
            value = getattr(stage, part.name)
            if part.name == "settings" or not part.metadata.get("hashed", True) or not value:
                continue
            fewer = value[1:] if isinstance(value, tuple) else None
            if fewer is not None:
                change: dict[str, Any] = {part.name: fewer}
                assert replace(stage, **change).identity.digest != stage.identity.digest, part.name


def test_monitoring_settings_are_not_hashed(stages: list[Stage]) -> None:
    (train,) = (stage for stage in stages if isinstance(stage, Train))
    watched = replace(train, monitoring=Monitoring(log_every=1, validate_every=2, checkpoint_every=3))
    assert watched.identity == train.identity
    assert train.settings.optimisation.canonical().keys().isdisjoint(Monitoring.model_fields)


def test_an_edited_default_threshold_rebuilds_the_corpus(
    built: Built, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter profile's name is not hashed, its limits are."""
    before = next(stage for stage in stages if isinstance(stage, Filter))
    filters = built.recipe.corpus.filters
    monkeypatch.setitem(FILTER_PROFILES, filters, {**FILTER_PROFILES[filters], "max_average_word": 14.0})
    (after,) = Filter.all_of(built.recipe, resolve(built.recipe.corpus.sources), before.documents)
    assert after.identity.digest != before.identity.digest
    assert filters not in str(before.settings.canonical())


def test_an_evaluation_gets_exactly_its_hashed_settings(
    stages: list[Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (stage,) = (stage for stage in stages if isinstance(stage, Evaluate))
    given: dict[str, Any] = {}

    def evaluate(*paths: Path, **arguments: Any) -> tuple[Report, Budgets]:
        given.update(arguments)
        return report().model_copy(update={"samples": ()}), BUDGETS

    monkeypatch.setattr("qalam_core.evaluation.evaluate.evaluate", evaluate)
    stage.run(tmp_path, no_progress)
    read = {"test", "split_documents", "train_tokens", "train_texts", "seen", "repetition", "suites", "device"}
    given["sample_bytes"] = dict(stage.settings)["sample_bytes"]  # of `test`
    given["tests"] = tuple(suite.name for suite in given["suites"])
    assert given.keys() - EvaluateSettings.model_fields.keys() == {*read, "progress"}
    assert {key: given[key] for key in EvaluateSettings.model_fields} == dict(stage.settings)


def test_a_limit_beyond_the_test_split_is_not_hashed(built: Built) -> None:
    """A smaller one is, and a sample of the split is measured."""
    made = {artifact.stage: artifact for artifact in built.published.artifacts}
    tokens = [artifact for artifact in built.published.artifacts if artifact.stage == "tokenize"]

    def stage(megabytes: float) -> Evaluate:
        gate = built.recipe.gate.model_copy(update={"test_mb": megabytes})
        recipe = built.recipe.model_copy(update={"gate": gate})
        return Evaluate.of(recipe, made["export"], made["train"], made["prepare"], tokens, made["seen"], ())

    assert stage(1.0).identity == stage(500.0).identity
    small = stage(0.0005)
    assert small.identity != stage(1.0).identity
    paths = [shard.path for shard in small.test]
    some, everything = held_out_sample(paths, small.settings.sample_bytes), held_out_sample(paths, None)
    assert 0 < some.counted.documents < some.counted.of == len(everything.documents)


def test_facts_are_frozen_records_of_the_type_that_run_returns(built: Built) -> None:
    kinds = {stage.name: get_type_hints(stage.run)["return"] for stage in STAGES}
    for artifact in built.published.artifacts:
        facts = artifact.facts(kinds[artifact.stage])
        assert type(facts).model_config["frozen"]
        assert facts.canonical() == artifact.manifest.facts


def test_labels_are_distinct(stages: list[Stage]) -> None:
    labels = [stage.label for stage in stages]
    assert len(set(labels)) == len(labels)
    assert all(label.startswith(stage.name) for label, stage in zip(labels, stages, strict=True))
