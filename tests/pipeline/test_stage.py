"""A stage is one frozen value: everything that its work sees is hashed."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from qalam_core.corpus.sources import resolve
from qalam_core.filter_profiles import FILTER_PROFILES
from qalam_core.pipeline.build import STAGES, stages_in_order
from qalam_core.pipeline.prepare import Prepare
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.train import Train
from qalam_core.recipe import Monitoring
from qalam_core.store import Artifact
from tests.conftest import Built


class Recorder:
    """An executor that reuses the built store, and keeps every stage that it was given."""

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
    stages_in_order(built.recipe, resolve(built.recipe.corpus.sources), built.runs, recorder)  # type: ignore[arg-type]
    return recorder.stages


def test_every_stage_is_in_the_order_once(stages: list[Stage]) -> None:
    assert tuple(dict.fromkeys(type(stage) for stage in stages)) == STAGES
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    files = {path.stem for path in Path(Prepare.__module__.replace(".", "/")).parent.glob("*.py")}
    assert {stage.name for stage in STAGES} <= files or not files  # one file a stage, of its name


def test_all_that_a_stage_holds_is_hashed(stages: list[Stage]) -> None:
    """Its fields are its settings and inputs; `run` gets nothing else. One field is exempt, and may not matter."""
    exempt = {(type(stage).name, part.name) for stage in stages for part in fields(stage)
              if not part.metadata.get("hashed", True)}  # fmt: skip
    assert exempt == {("train", "monitoring")}
    for stage in stages:
        identity = stage.identity
        assert identity.settings == stage.settings.canonical()
        inputs = [part for part in fields(stage) if part.name != "settings" and part.metadata.get("hashed", True)]
        for part in inputs:
            value = getattr(stage, part.name)
            count = len(value) if isinstance(value, tuple) else value is not None
            assert sum(name.startswith(part.name) for name in identity.inputs) >= count, (stage.name, part.name)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # "other" is of another type than most settings
def test_every_setting_and_input_counts(stages: list[Stage]) -> None:
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
                assert replace(stage, **{part.name: fewer}).identity.digest != stage.identity.digest, part.name


def test_how_a_training_is_watched_does_not_count(stages: list[Stage]) -> None:
    (train,) = (stage for stage in stages if isinstance(stage, Train))
    watched = replace(train, monitoring=Monitoring(log_every=1, validate_every=2, checkpoint_every=3))
    assert watched.identity == train.identity
    assert train.settings.optimisation.canonical().keys().isdisjoint(Monitoring.model_fields)


def test_an_edited_default_threshold_is_another_corpus(
    built: Built, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter profile's name is not hashed, its limits are."""
    before = next(stage for stage in stages if isinstance(stage, Prepare))
    filters = built.recipe.corpus.filters
    monkeypatch.setitem(FILTER_PROFILES, filters, {**FILTER_PROFILES[filters], "max_average_word": 14.0})
    after = Prepare.of(built.recipe, before.documents)
    assert after.identity.digest != before.identity.digest
    assert filters not in str(before.settings.canonical())


def test_labels_are_distinct(stages: list[Stage]) -> None:
    labels = [stage.label for stage in stages]
    assert len(set(labels)) == len(labels)
    assert all(label.startswith(stage.name) for label, stage in zip(labels, stages, strict=True))
