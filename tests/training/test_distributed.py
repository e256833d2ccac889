"""Several processes: the losses of one, and all exit when one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from qalam_core.files import sha256_file
from qalam_core.recipe import Model
from tests.training.small_training import DROPOUT, LLAMA, MODEL, finish, losses, spec, start, write_tokens

pytestmark = pytest.mark.usefixtures("processes")

GROUPED = LLAMA.model_copy(update={"dropout": 0.0})


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("how", "optimizer"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_two_gpus_give_the_losses_of_one(how: str, optimizer: str, cyclic: Path, tmp_path: Path) -> None:
    for name, change in (("one", {"accumulate": 2}), ("two", {"processes": 2, "distributed": how})):
        file = spec(tmp_path / name, cyclic, device="cuda", dtype="float32", optimizer=optimizer, **change)
        assert finish(file)[0] == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


@pytest.mark.parametrize(
    ("how", "optimizer", "model"), [("ddp", "muon", MODEL), ("fsdp", "adamw", MODEL), ("fsdp", "adamw", GROUPED)]
)
def test_two_processes_give_the_losses_of_one(
    how: str, optimizer: str, model: Model, cyclic: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "optimizer": optimizer}
    alone = spec(tmp_path / "alone", cyclic, model, accumulate=2, **settings)
    shared = spec(tmp_path / "shared", cyclic, model, processes=2, distributed=how, **settings)
    for file in (alone, shared):
        status, _, errors = finish(file)
        assert (status, errors) == (0, "")
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "shared"))
    assert one.keys() == two.keys()
    assert json.loads((tmp_path / "shared" / "result.json").read_text())["processes"] == 2


@pytest.fixture(scope="module")
def straight(cyclic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of two processes that were not stopped."""
    folder = tmp_path_factory.mktemp("straight")
    assert finish(spec(folder, cyclic, DROPOUT, processes=2))[0] == 0
    return folder / "model.safetensors"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_stops_all_and_they_resume_to_the_same_bits(
    how: signal.Signals, straight: Path, cyclic: Path, tmp_path: Path
) -> None:
    """By SIGKILL to one of two processes, and by SIGTERM to their launcher."""
    hit = spec(tmp_path / "hit", cyclic, DROPOUT, processes=2)
    with start(hit) as process:
        assert process.stdout and process.stderr
        for line in process.stdout:
            if json.loads(line)["step"] >= 30:
                break
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], stdout=subprocess.PIPE, text=True)
        ranks = [int(pid) for pid in found.stdout.split() if b"spec.json" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(ranks[-1] if how is signal.SIGKILL else process.pid, how)
        process.stdout.read()
        errors, status = process.stderr.read(), process.wait()
    if how is signal.SIGKILL:
        assert status == 2
        assert errors.splitlines()[-1].endswith("run the same command again to resume from the last checkpoint")
        assert "Traceback" not in errors
    else:
        assert (status, errors) == (75, "")
    status, out, errors = finish(hit)
    assert (status, errors) == (0, "")
    assert json.loads(out.splitlines()[0])["step"] >= 20
    assert sha256_file(tmp_path / "hit" / "model.safetensors") == sha256_file(straight)


def test_a_user_error_in_several_processes_is_reported_once(tmp_path: Path) -> None:
    short = write_tokens(tmp_path / "short.arrow", [5, 6])
    status, _, errors = finish(spec(tmp_path / "out", short, processes=2))
    assert status == 2
    assert "lower model.max_seq_len" in errors.splitlines()[-1]
