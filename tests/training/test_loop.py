"""Training runs in subprocesses: their files, and that interruptions do not change the weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file

from qalam_core.files import sha256_file
from qalam_core.recipe import Model
from qalam_core.tokens.shards import Labels, write_shard
from qalam_core.training.loop import validation_windows
from qalam_core.training.spec import Spec
from tests.training.small_training import (
    CYCLE,
    DROPOUT,
    LLAMA,
    MODEL,
    VOCABULARY,
    finish,
    losses,
    metrics,
    spec,
    start,
    write_tokens,
)

pytestmark = pytest.mark.usefixtures("processes")


def test_validation_is_bounded_and_needs_one_window(cyclic: Path, tmp_path: Path) -> None:
    windows = validation_windows([cyclic, cyclic], 16)
    assert windows is not None
    assert windows.shape == (256, 17)
    assert validation_windows([write_tokens(tmp_path / "short.arrow", [5, 6])], 16) is None
    assert validation_windows([], 16) is None


def test_a_run_leaves_weights_metrics_and_a_result(uninterrupted: Path) -> None:
    lines = metrics(uninterrupted)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [10, 20, 30, 40, 50, 60]
    assert [line["step"] for line in lines if "validation_loss" in line] == [30, 60]
    assert steps[-1]["loss"] < 0.5 < steps[0]["loss"]
    assert set(steps[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_mb"}
    weights = load_file(uninterrupted / "model.safetensors")
    assert "lm_head.weight" not in weights
    result = json.loads((uninterrupted / "result.json").read_text())
    assert result["parameters"] == sum(tensor.size for tensor in weights.values())
    assert result["validation_loss"] == lines[-1]["validation_loss"]


def test_two_runs_give_the_same_bits_and_import_no_compiler(uninterrupted: Path, cyclic: Path, tmp_path: Path) -> None:
    file = spec(tmp_path / "again", cyclic, DROPOUT)
    command = [sys.executable, "-X", "importtime", "-m", "qalam_core.training", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr
        imported = set(process.stderr.read().decode().split())
    assert process.returncode == 0
    assert "torch.optim" in imported
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & imported
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(uninterrupted / "model.safetensors")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_a_stopped_run_resumes_to_the_same_bits(
    how: signal.Signals | None, uninterrupted: Path, cyclic: Path, tmp_path: Path
) -> None:
    file = spec(tmp_path / "out", cyclic, DROPOUT)
    with start(file) as process:
        assert process.stdout and process.stdin
        for line in process.stdout:
            if json.loads(line)["step"] >= 30:
                break
        if how:
            os.kill(process.pid, how)
        else:  # the parent is gone
            process.stdin.close()
        status = process.wait()
    assert status == (-signal.SIGKILL if how is signal.SIGKILL else 75)
    checkpoints = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert 1 <= len(checkpoints) <= 2
    status, out, errors = finish(file)
    assert (status, errors) == (0, "")
    assert json.loads(out.splitlines()[0])["step"] >= 20  # it resumed, it did not start over
    for name in ("model.safetensors", "state.safetensors"):
        assert sha256_file(tmp_path / "out" / name) == sha256_file(uninterrupted / name)
    steps = [line["step"] for line in metrics(tmp_path / "out")]
    assert steps == sorted(steps)


@pytest.mark.parametrize(("model", "change"), [
    (DROPOUT, {"optimizer": "adamw"}), (DROPOUT, {"spike": 3.0, "z_loss": 1e-4, "schedule": "cosine"}), (LLAMA, {}),
])  # fmt: skip
def test_every_option_resumes_to_the_same_bits(
    model: Model, change: dict[str, Any], cyclic: Path, tmp_path: Path
) -> None:
    straight, stopped = (spec(tmp_path / name, cyclic, model, **change) for name in ("straight", "stopped"))
    assert finish(straight)[0] == 0
    with start(stopped) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["step"] >= 30:
                break
        process.kill()
    assert finish(stopped)[0] == 0
    names = ("straight", "stopped")
    one, other = (sha256_file(tmp_path / name / "model.safetensors") for name in names)
    assert one == other


def test_a_mixed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """With fractions of both sources, over several epochs; other weights are another run."""
    tokens = tmp_path / "mixed.arrow"
    ids, counts = np.arange(60 * 30) % CYCLE + 4, np.full(60, 30)
    names = pa.array(["news"] * 40 + ["web"] * 20, pa.string())
    write_shard(tokens, [(ids, counts)], VOCABULARY, 2, 3, Labels.of(np.arange(60, dtype=np.uint64), names))
    files = [spec(tmp_path / name, tokens, DROPOUT) for name in ("straight", "stopped", "other")]
    for file, weights in zip(files, ({"news": 1.7, "web": 0.4}, {"news": 1.7, "web": 0.4}, {"news": 0.4}), strict=True):
        made = Spec.load(file)
        settings = made.settings.model_copy(update={"weights": weights})
        made.model_copy(update={"settings": settings}).save(file)
    assert finish(files[0])[0] == 0
    with start(files[1]) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["step"] >= 30:
                break
        process.kill()
    assert finish(files[1])[0] == finish(files[2])[0] == 0
    one, same, other = (sha256_file(file.parent / "model.safetensors") for file in files)
    assert one == same != other


def test_a_continued_run_resumes_to_the_same_bits(uninterrupted: Path, cyclic: Path, tmp_path: Path) -> None:
    initial = str(uninterrupted / "state.safetensors")
    straight, stopped = (spec(tmp_path / name, cyclic, DROPOUT, initial=initial) for name in ("straight", "stopped"))
    assert finish(straight)[0] == 0
    with start(stopped) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["step"] >= 30:
                break
        process.kill()
    assert finish(stopped)[0] == 0
    for name in ("model.safetensors", "state.safetensors"):
        assert sha256_file(tmp_path / "stopped" / name) == sha256_file(tmp_path / "straight" / name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("how", ["off", "on"])
@pytest.mark.parametrize("model", [DROPOUT, LLAMA])
def test_two_runs_on_a_gpu_give_the_same_bits(model: Model, how: str, cyclic: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert finish(spec(tmp_path / name, cyclic, model, device="cuda", dtype="bfloat16", compile=how))[0] == 0
    assert sha256_file(tmp_path / "one" / "model.safetensors") == sha256_file(tmp_path / "two" / "model.safetensors")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("model", [DROPOUT, LLAMA])
def test_compiled_runs_give_the_same_bits(model: Model, cyclic: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert finish(spec(tmp_path / name, cyclic, model, compile="on", dtype="bfloat16"))[0] == 0
    assert sha256_file(tmp_path / "one" / "model.safetensors") == sha256_file(tmp_path / "two" / "model.safetensors")
    assert losses(tmp_path / "one")[-1] < 0.5


@pytest.mark.parametrize("model", [MODEL, LLAMA])
def test_bfloat16_trains(model: Model, cyclic: Path, tmp_path: Path) -> None:
    status, _, errors = finish(spec(tmp_path / "out", cyclic, model, dtype="bfloat16"))
    assert (status, errors) == (0, "")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.dtype == np.float32 for tensor in weights.values())


def test_auto_is_resolved_and_recorded(cyclic: Path, tmp_path: Path) -> None:
    status, out, _ = finish(spec(tmp_path / "out", cyclic))
    assert status == 0
    first = json.loads(out.splitlines()[0])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert first["dtype"] == result["dtype"] in ("float32", "bfloat16")
    assert first["compile"] == result["compile"] == "off"  # too short to pay
    assert result["threads"] == 1


def test_a_non_finite_loss_stops_the_run(cyclic: Path, tmp_path: Path) -> None:
    status, _, errors = finish(spec(tmp_path / "out", cyclic, learning_rate=1e30, clip=1e30))
    assert status == 2
    assert "the loss became" in errors
    assert "at step" in errors
    assert "lower train.learning_rate" in errors
    assert len(errors.splitlines()) == 1


def test_many_spikes_in_a_row_stop_the_run(cyclic: Path, tmp_path: Path) -> None:
    status, _, errors = finish(spec(tmp_path / "out", cyclic, learning_rate=1e30, spike=5.0))
    assert status == 2
    assert "20 steps in a row were skipped" in errors
