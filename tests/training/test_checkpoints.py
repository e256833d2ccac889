"""Checkpoints that are damaged, or that were made under other conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qalam_core.files import DISK_ERRORS, sha256_file
from qalam_core.training.checkpoints import find, write
from qalam_core.training.spec import CHECKPOINTS, WEIGHTS
from tests.training.small_training import CYCLE, DROPOUT, finish, spec, start, write_tokens

pytestmark = pytest.mark.usefixtures("processes")


def test_a_damaged_checkpoint_is_skipped(uninterrupted: Path, cyclic: Path, tmp_path: Path) -> None:
    file = spec(tmp_path / "out", cyclic, DROPOUT)
    finish(file)
    (tmp_path / "out" / "model.safetensors").unlink()
    newest = max((tmp_path / "out").glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:100])
    status, out, _ = finish(file)
    assert status == 0
    assert json.loads(out.splitlines()[0])["step"] == 40
    assert sha256_file(tmp_path / "out" / "model.safetensors") == sha256_file(uninterrupted / "model.safetensors")


def test_a_checkpoint_that_cannot_be_read_is_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000000200.safetensors").mkdir()  # cannot be mapped, as a file of a failing disk
    with pytest.raises(OSError, match="No such device") as caught:
        find(tmp_path, {})
    assert caught.value.errno in DISK_ERRORS
    assert caught.value.filename == str(tmp_path / "checkpoint-000000200.safetensors")
    assert list(tmp_path.iterdir())


def test_partial_files_of_killed_trainings_are_deleted(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f".checkpoint-000000200.safetensors.{number}").write_bytes(b"partial")
    write(tmp_path, 200, {"a": torch.zeros(3)}, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000200.safetensors"]


def test_other_conditions_are_refused_by_name(cyclic: Path, tmp_path: Path) -> None:
    finish(spec(tmp_path / "out", cyclic))
    status, _, errors = finish(spec(tmp_path / "out", cyclic, threads=2))
    assert status == 2
    assert "threads 1 -> 2" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_another_machines_checkpoint_is_used_where_its_conditions_are_the_same(
    uninterrupted: Path, cyclic: Path, tmp_path: Path, threads: int
) -> None:
    finish(spec(tmp_path / "one", cyclic, DROPOUT))
    max((tmp_path / "one").glob(CHECKPOINTS)).unlink()
    elsewhere = str(tmp_path / "one")
    status, out, errors = finish(spec(tmp_path / "two", cyclic, DROPOUT, elsewhere=elsewhere, threads=threads))
    assert (status, errors) == (0, "")
    first = json.loads(out.splitlines()[0])
    if threads == 1:
        assert (first["step"], first["note"]) == (40, "")
        assert sha256_file(tmp_path / "two" / WEIGHTS) == sha256_file(uninterrupted / WEIGHTS)
    else:
        assert first["step"] == 0
        assert first["note"].startswith("another machine's training is not continued: the checkpoint at step 40 was ")
        assert first["note"].endswith("(threads 1 -> 2)")


def test_changed_conditions_are_named(cyclic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(spec(out, cyclic, dtype="bfloat16"))
    other = write_tokens(tmp_path / "other.arrow", [4 + n % CYCLE for n in range(4100)])
    same: dict[str, Any] = {"dtype": "bfloat16", "log_every": 7}
    for tokens, change, named in (
        (cyclic, {"dtype": "float32"}, "dtype bfloat16 -> float32"),
        (cyclic, {"accumulate": 2, "learning_rate": 0.02}, "accumulate 1 -> 2, learning_rate 0.01 -> 0.02"),
        (other, {}, "tokens "),
    ):
        status, _, errors = finish(spec(out, tokens, **{**same, **change}))
        assert status == 2
        assert f"({named}" in errors
        assert errors.count(" -> ") == max(1, len(change))


def test_checkpoints_are_also_written_by_time(cyclic: Path, tmp_path: Path) -> None:
    with start(spec(tmp_path / "out", cyclic, checkpoint_every=1000, checkpoint_minutes=1e-9)) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["step"] >= 20:
                break
        process.kill()
    # two are kept; killed between saving a third and deleting the first, it leaves three
    assert len([*(tmp_path / "out").glob("checkpoint-*")]) in (2, 3)
