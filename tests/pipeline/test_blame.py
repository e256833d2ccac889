"""Since which run a row stands: `qalam_core.pipeline.blame` and the command."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package.editing.rows import add_token, scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.pipeline.blame import Version, blame, tensors_since, versions
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import Built
from tests.flows.cli.command import qalam
from tests.small_package import CONFIG, WORDS, export, vocabulary, weights

EMBEDDING = "embedding.weight"


def night(folder: Path, number: int, **changes: object) -> Version:
    package = export(folder / f"night-{number}", **changes)
    return Version(f"night-{number}", package, f"2030-01-0{number}T00:00:00+00:00", "promoted by gate: passed the gate")


@pytest.fixture
def chain(tmp_path: Path) -> list[Version]:
    """Four nights, newest first: all rows move by noise, and in the third one that of القط by much more."""
    noise = np.random.default_rng(5)
    values = weights()
    found: list[Version] = []
    for number in (1, 2, 3, 4):
        values = {
            name: tensor + noise.normal(0, 0.01, tensor.shape).astype(np.float32) for name, tensor in values.items()
        }
        if number == 3:
            values[EMBEDDING][4] += 1
        found.insert(0, night(tmp_path, number, weights=values))
    return found


def test_a_training_that_moved_one_row_unusually_is_named(chain: list[Version]) -> None:
    found = blame(chain, EMBEDDING, "القط")
    assert found.what == f'{EMBEDDING} row 4 "القط"'
    assert [step.newer.name for step in found.steps] == ["night-4", "night-3", "night-2"]
    assert found.since is not None and found.since.newer.name == "night-4"
    assert found.outlier is not None and found.outlier.newer.name == "night-3"
    assert found.outlier.moved == pytest.approx(8**0.5, rel=0.1)
    assert (found.outlier.factor or 0) > 50
    assert all(0.2 < (step.factor or 0) < 5 for step in found.steps if step is not found.outlier)
    assert found.end == "nothing is known before night-1"
    other = blame(chain, EMBEDDING, "السمك")
    assert other.outlier is not None and (other.outlier.factor or 9) < 3


def test_a_row_is_followed_by_its_word(tmp_path: Path) -> None:
    order = [0, 1, 2, 3, *reversed(range(4, 12))]
    values = weights()
    turned = {**values, EMBEDDING: values[EMBEDDING][order]}
    old = night(tmp_path, 1, weights=turned, vocabulary=vocabulary(words=tuple(WORDS[row] for row in order)))
    found = blame([night(tmp_path, 2), old], EMBEDDING, "القط")
    assert [step.moved for step in found.steps] == [0]
    assert found.since is None
    assert found.last == old
    by_number = blame([night(tmp_path, 3), old], "blocks.0.fc1.weight", "4")
    assert by_number.since is None


def test_a_new_word_is_new_since_the_run_that_has_it(tmp_path: Path) -> None:
    words = tuple("قديم" if word == "القط" else word for word in WORDS)
    found = blame([night(tmp_path, 2), night(tmp_path, 1, vocabulary=vocabulary(words=words))], EMBEDDING, "القط")
    assert found.steps == ()
    assert found.end == '"القط" is not in the vocabulary of night-1, so it is new in night-2'


def test_deleted_runs_are_unknown_and_not_skipped(chain: list[Version]) -> None:
    gone = [version if version.name != "night-3" else replace(version, folder=None) for version in chain]
    found = blame(gone, EMBEDDING, "القط")
    assert [(step.newer.name, [version.name for version in step.deleted]) for step in found.steps] == [
        ("night-4", ["night-3"]), ("night-2", []),
    ]  # fmt: skip
    oldest = [*chain[:2], *(replace(version, folder=None) for version in chain[2:])]
    assert blame(oldest, EMBEDDING, "القط").end == "deleted, so unknown: night-2, night-1"
    since = tensors_since([chain[0], *(replace(version, folder=None) for version in chain[1:])])
    assert all(len(deleted) == 3 for _, deleted in since.values())
    with pytest.raises(PackageError, match="nothing is left to compare"):
        blame([replace(version, folder=None) for version in chain], EMBEDDING, "القط")


def test_tensors_stand_since_the_run_that_last_changed_them(tmp_path: Path) -> None:
    values = weights()
    moved = {**values, "blocks.0.out.bias": values["blocks.0.out.bias"] + 1}
    chain = [night(tmp_path, 3, weights=moved), night(tmp_path, 2, weights=moved), night(tmp_path, 1)]
    since = {name: version.name for name, (version, _) in tensors_since(chain).items()}
    assert since.pop("blocks.0.out.bias") == "night-2"
    assert set(since.values()) == {"night-1"}
    whole = blame(chain, "blocks.0.out.bias")
    assert [step.moved for step in whole.steps] == [0, pytest.approx(8**0.5)]
    assert whole.since is not None and whole.since.newer.name == "night-2"


def test_another_shape_and_unknown_names_are_said(tmp_path: Path) -> None:
    config = replace(CONFIG, dim=16)
    old = night(tmp_path, 1, config=config, weights=weights(config))
    chain = [night(tmp_path, 2), old]
    assert "another shape in night-1: 1 x 16" in blame(chain, EMBEDDING, "القط").end
    with pytest.raises(PackageError, match=r'no tensor "embeding.weight"; did you mean'):
        blame(chain, "embeding.weight")
    with pytest.raises(PackageError, match="has the rows 0 to 11, not 12"):
        blame(chain, EMBEDDING, "12")
    with pytest.raises(PackageError, match="is not a token"):
        blame(chain, EMBEDDING, "مجهول")


@pytest.mark.usefixtures("processes")
def test_an_edited_copy_of_a_run(built: Built, tmp_path: Path) -> None:
    run, root = built.published.run, built.store.root
    copy = tmp_path / "copy"
    shutil.copytree(Runs(built.store).folder(run) / "model", copy)
    assert [version.name for version in versions(Runs(built.store), str(copy), tmp_path, 1)] == [run]
    scale_row(copy, EMBEDDING, 10, 2)
    seal(copy, "twice \x85as long".replace("\x85", ""))
    found = json.loads(qalam("blame", copy, EMBEDDING, "--row", 10, "--store", root, "--json").stdout)
    assert (found["since"], len(found["steps"]), found["steps"][0]["from"]) == (str(copy), 1, run)
    assert "1. twice as long" in found["steps"][0]["why"]
    other = json.loads(qalam("blame", copy, EMBEDDING, "--row", 11, "--store", root, "--json").stdout)
    assert other["since"] is None
    tensors = json.loads(qalam("blame", copy, "--store", root, "--json").stdout)
    assert tensors.pop(EMBEDDING)["version"] == str(copy)
    assert {entry["version"] for entry in tensors.values()} == {run}
    shown = qalam("blame", copy, EMBEDDING, "--row", 11, "--store", root)
    assert "stands as it does at least since" in shown.stdout
    assert run in shown.stdout
    wrong = qalam("blame", copy, "--row", 11, "--store", root)
    assert wrong.returncode == 2
    assert "--row needs a tensor" in wrong.stderr


@pytest.mark.usefixtures("processes")
def test_a_package_in_git_is_followed_by_its_commits(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    folder = export(repository / "models" / "mine", provenance={})

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True)

    git("init", "--quiet")
    for message in ("first", "second \u202e", "third"):
        if message.startswith("second"):
            scale_row(folder, EMBEDDING, "القط", 3)
        elif message == "third":
            add_token(folder, "جديدة")
        git("add", ".")
        git("-c", "user.name=من", "-c", "user.email=a@b", "commit", "--quiet", "-m", message)
    store = tmp_path / "store"
    found = json.loads(qalam("blame", folder, EMBEDDING, "--row", "القط", "--store", store, "--json").stdout)
    assert [step["why"].partition(": ")[2] for step in found["steps"]] == ["", "third", "second \u202e"]
    assert [step["moved"] > 0 for step in found["steps"]] == [False, False, True]
    assert found["since"] == found["steps"][2]["version"]
    new = json.loads(qalam("blame", folder, EMBEDDING, "--row", "جديدة", "--store", store, "--json").stdout)
    assert len(new["steps"]) == 1
    assert "is not in the vocabulary" in new["end"]
    shown = qalam("blame", folder, EMBEDDING, "--row", "القط", "--store", store)
    assert shown.returncode == 0, shown.stderr
    assert "committed by من" in shown.stdout.replace("\u2068", "").replace("\u2069", "")
    assert "\u202e" not in shown.stdout
    assert not list(Path(store).glob("**/*.py"))


def test_what_is_no_package_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match=r"no manifest\.json"):
        versions(Runs(Store(tmp_path / "store")), str(tmp_path / "empty"), tmp_path, 1)
