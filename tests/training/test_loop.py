from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from qalam_core.errors import TrainingError
from qalam_core.model import PureDynamicTransformer
from qalam_core.recipe import Model, Train
from qalam_core.store import file_sha256
from qalam_core.tokens.shards import Batches, flattened, write_shard
from qalam_core.training.hardware import choose_numerics
from qalam_core.training.loop import Spec, Training, validation_windows, weights_of
from qalam_core.training.optimizers import learning_rate

CYCLE = 20
MODEL = Model(dim=32, num_heads=2, num_layers=1, max_seq_len=16)
DROPOUT = Model(dim=32, num_heads=2, num_layers=1, max_seq_len=16, dropout=0.1)
STEPS = Train(
    steps=60,
    batch_size=8,
    learning_rate=0.01,
    threads=1,
    log_every=10,
    checkpoint_every=20,
    validate_every=30,
)


@pytest.fixture(scope="session")
def cyclic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4, 5, ..., 23, 4, 5, ... without end: after token n comes n + 1, and never anything else."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.arrow"
    write_shard(path, [flattened([[4 + n % CYCLE for n in range(4000)]])], 4 + CYCLE, 2, 3)
    return path


def spec(out: Path, tokens: Path, model: Model = MODEL, **train: Any) -> Path:
    out.mkdir(exist_ok=True)
    settings = STEPS.model_copy(update=train)
    Spec(model, settings, 4 + CYCLE, 3, (str(tokens),), (str(tokens),), str(out)).save(out / "spec.json")
    return out / "spec.json"


def start(file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qalam_core.training.loop", str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(file: Path) -> tuple[int, str, str]:
    with start(file) as process:
        assert process.stdout and process.stderr and process.stdin
        out, errors = process.stdout.read(), process.stderr.read()
        return process.wait(), out, errors


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_target_is_the_next_token(cyclic: Path) -> None:
    """The shift is in one place: a model trained on a cycle predicts t + 1, and never t + 2."""
    torch.manual_seed(0)
    model = PureDynamicTransformer(vocab_size=4 + CYCLE, **MODEL.model_dump())
    training = Training(model, Batches([cyclic], 8, 16, seed=0), STEPS, seed=0)
    for number in range(STEPS.steps):
        training.step(number)
    model.eval()
    ids = torch.tensor([[4 + n % CYCLE for n in range(16)]])
    predicted = model(ids)[0].argmax(-1)
    assert torch.equal(predicted, 4 + (ids - 4 + 1) % CYCLE)
    assert not torch.equal(predicted, 4 + (ids - 4 + 2) % CYCLE)


def test_matrices_decay_and_vectors_do_not(cyclic: Path) -> None:
    model = PureDynamicTransformer(vocab_size=4 + CYCLE, **MODEL.model_dump())
    settings = STEPS.model_copy(update={"optimizer": "adamw"})
    training = Training(model, Batches([cyclic], 8, 16, seed=0), settings, seed=0)
    decayed, kept = training.optimizers.all[0].param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() == 1 for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    settings = Train(steps=1000, warmup=0.1, learning_rate=1.0, schedule="cosine")
    rates = [learning_rate(settings, number) for number in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.55, abs=0.01)
    assert rates[999] == pytest.approx(0.1, abs=0.001)


def test_wsd_stays_at_the_peak_and_then_takes_a_straight_line() -> None:
    settings = Train(steps=1000, warmup=0.1, learning_rate=1.0, schedule="wsd", decay=0.2, final=0.0)
    rates = [learning_rate(settings, number) for number in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100:801] == [1.0] * 701
    assert rates[900] == pytest.approx(0.5)
    assert rates[999] == pytest.approx(0.005)


def test_accumulation_changes_the_memory_and_not_the_gradient(cyclic: Path) -> None:
    norms = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = PureDynamicTransformer(vocab_size=4 + CYCLE, **MODEL.model_dump())
        settings = STEPS.model_copy(update={"accumulate": parts, "dtype": "float32"})
        loss, norm = Training(model, Batches([cyclic], 8, 16, seed=0), settings, seed=0).step(0)
        norms.append((loss.item(), norm.item()))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_validation_is_bounded_and_needs_one_window(cyclic: Path, tmp_path: Path) -> None:
    windows = validation_windows([cyclic, cyclic], 16)
    assert windows is not None
    assert windows.shape == (256, 17)
    write_shard(tmp_path / "short.arrow", [flattened([[5, 6]])], 24, 2, 3)
    assert validation_windows([tmp_path / "short.arrow"], 16) is None
    assert validation_windows([], 16) is None


@pytest.fixture(scope="session")
def uninterrupted(cyclic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    status, _, errors = finish(spec(out, cyclic, DROPOUT))
    assert (status, errors) == (0, "")
    return out


def test_a_run_leaves_weights_metrics_and_a_result(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [10, 20, 30, 40, 50, 60]
    assert [line["step"] for line in lines if "validation_loss" in line] == [30, 60]
    assert losses[-1]["loss"] < 0.5 < losses[0]["loss"]
    assert set(losses[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_mb"}
    weights = load_file(uninterrupted / "model.safetensors")
    assert "lm_head.weight" not in weights
    result = json.loads((uninterrupted / "result.json").read_text())
    assert result["parameters"] == sum(tensor.size for tensor in weights.values())
    assert result["validation_loss"] == lines[-1]["validation_loss"]


def test_two_runs_give_the_same_bits(uninterrupted: Path, cyclic: Path, tmp_path: Path) -> None:
    finish(spec(tmp_path / "again", cyclic, DROPOUT))
    assert file_sha256(tmp_path / "again" / "model.safetensors") == file_sha256(uninterrupted / "model.safetensors")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_a_stopped_run_goes_on_to_the_same_bits(
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
        else:  # whoever started it is gone
            process.stdin.close()
        status = process.wait()
    assert status == (-signal.SIGKILL if how is signal.SIGKILL else 75)
    checkpoints = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert 1 <= len(checkpoints) <= 2
    status, out, errors = finish(file)
    assert (status, errors) == (0, "")
    assert json.loads(out.splitlines()[0])["step"] >= 20  # it went on, it did not start over
    assert file_sha256(tmp_path / "out" / "model.safetensors") == file_sha256(uninterrupted / "model.safetensors")
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_damaged_checkpoint_is_passed_over(uninterrupted: Path, cyclic: Path, tmp_path: Path) -> None:
    file = spec(tmp_path / "out", cyclic, DROPOUT)
    finish(file)
    (tmp_path / "out" / "model.safetensors").unlink()
    newest = max((tmp_path / "out").glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:100])
    status, out, _ = finish(file)
    assert status == 0
    assert json.loads(out.splitlines()[0])["step"] == 40
    assert file_sha256(tmp_path / "out" / "model.safetensors") == file_sha256(uninterrupted / "model.safetensors")


def test_other_conditions_are_refused_by_name(cyclic: Path, tmp_path: Path) -> None:
    finish(spec(tmp_path / "out", cyclic))
    status, _, errors = finish(spec(tmp_path / "out", cyclic, threads=2))
    assert status == 2
    assert "threads 1 -> 2" in errors
    assert len(errors.splitlines()) == 1


def test_a_loss_that_is_no_number_stops_the_run(cyclic: Path, tmp_path: Path) -> None:
    status, _, errors = finish(spec(tmp_path / "out", cyclic, learning_rate=1e30, clip=1e30))
    assert status == 2
    assert "the loss became" in errors
    assert "at step" in errors
    assert "lower train.learning_rate" in errors
    assert len(errors.splitlines()) == 1


def test_no_gpu_is_one_line(cyclic: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, _, errors = finish(spec(tmp_path / "out", cyclic, device="cuda"))
    assert status == 2
    assert "sees no GPU" in errors


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("how", ["off", "on", "graphs"])
def test_two_runs_on_a_gpu_give_the_same_bits(how: str, cyclic: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert finish(spec(tmp_path / name, cyclic, DROPOUT, device="cuda", dtype="bfloat16", compile=how))[0] == 0
    assert file_sha256(tmp_path / "one" / "model.safetensors") == file_sha256(tmp_path / "two" / "model.safetensors")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("how", "optimizer"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_two_gpus_give_the_curve_of_one(how: str, optimizer: str, cyclic: Path, tmp_path: Path) -> None:
    for name, change in (("one", {"accumulate": 2}), ("two", {"processes": 2, "distributed": how})):
        file = spec(tmp_path / name, cyclic, device="cuda", dtype="float32", optimizer=optimizer, **change)
        assert finish(file)[0] == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_bfloat16_trains_too(cyclic: Path, tmp_path: Path) -> None:
    status, _, errors = finish(spec(tmp_path / "out", cyclic, dtype="bfloat16"))
    assert (status, errors) == (0, "")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.dtype == np.float32 for tensor in weights.values())


def test_data_shorter_than_the_context_is_one_line(tmp_path: Path) -> None:
    write_shard(tmp_path / "short.arrow", [flattened([[5, 6]])], 24, 2, 3)
    status, _, errors = finish(spec(tmp_path / "out", tmp_path / "short.arrow"))
    assert status == 2
    assert "lower model.max_seq_len" in errors
    with pytest.raises(TrainingError):
        Batches([tmp_path / "short.arrow"], 8, 16, 0)


# -- what a recipe may ask for ----------------------------------------------------------------------


def test_muon_turns_the_blocks_matrices_and_adamw_has_the_rest(cyclic: Path, tmp_path: Path) -> None:
    model = PureDynamicTransformer(vocab_size=4 + CYCLE, **MODEL.model_dump())
    settings = STEPS.model_copy(update={"optimizer": "muon"})
    muon, adamw = Training(model, Batches([cyclic], 8, 16, seed=0), settings, seed=0).optimizers.all
    names = {id(p): name for name, p in model.named_parameters()}
    turned = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert turned == {f"blocks.0.{part}.weight" for part in ("qkv", "out", "fc1", "fc2")}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert turned | rest == set(names.values())
    assert not turned & rest


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"spike": 3.0, "z_loss": 1e-4, "schedule": "cosine"}])
def test_every_option_resumes_to_the_same_bits(change: dict[str, Any], cyclic: Path, tmp_path: Path) -> None:
    straight, stopped = (spec(tmp_path / name, cyclic, DROPOUT, **change) for name in ("straight", "stopped"))
    assert finish(straight)[0] == 0
    with start(stopped) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["step"] >= 30:
                break
        process.kill()
    assert finish(stopped)[0] == 0
    names = ("straight", "stopped")
    one, other = (file_sha256(tmp_path / name / "model.safetensors") for name in names)
    assert one == other


def test_auto_is_settled_and_recorded(cyclic: Path, tmp_path: Path) -> None:
    status, out, _ = finish(spec(tmp_path / "out", cyclic))
    assert status == 0
    first = json.loads(out.splitlines()[0])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert first["dtype"] == result["dtype"] in ("float32", "bfloat16")
    assert first["compile"] == result["compile"] == "off"  # too short to pay
    assert result["threads"] == 1


def test_compiling_pays_for_long_runs_alone() -> None:
    device = torch.device("cpu")
    short, long = (choose_numerics(Train(steps=steps), device, 1_400_000, 128) for steps in (100, 100_000))
    assert short.compile == "off"
    assert long.compile == ("on" if shutil.which("g++") else "off")
    with pytest.raises(TrainingError, match="graphs"):
        choose_numerics(Train(compile="graphs"), device, 1, 1)


def test_what_changed_is_named(cyclic: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(spec(out, cyclic, dtype="bfloat16"))
    other = tmp_path / "other.arrow"
    write_shard(other, [flattened([[4 + n % CYCLE for n in range(4100)]])], 4 + CYCLE, 2, 3)
    same = {"dtype": "bfloat16", "log_every": 7}
    for tokens, change, named in (
        (cyclic, {"dtype": "float32"}, "dtype bfloat16 -> float32"),
        (cyclic, {"accumulate": 2, "learning_rate": 0.02}, "accumulate 1 -> 2, learning_rate 0.01 -> 0.02"),
        (other, {}, "tokens "),
    ):
        status, _, errors = finish(spec(out, tokens, **{**same, **change}))
        assert status == 2
        assert f"({named}" in errors
        assert errors.count(" -> ") == max(1, len(change))


def test_patience_ends_with_the_best_weights(cyclic: Path, tmp_path: Path) -> None:
    """Held-out text of another rule: the longer it trains, the worse it gets."""
    backwards = tmp_path / "backwards.arrow"
    write_shard(backwards, [flattened([[4 - n % CYCLE + CYCLE - 1 for n in range(600)]])], 4 + CYCLE, 2, 3)
    out = tmp_path / "out"
    out.mkdir()
    settings = STEPS.model_copy(update={"validate_every": 4, "patience": 3, "log_every": 4})
    Spec(MODEL, settings, 4 + CYCLE, 3, (str(cyclic),), (str(backwards),), str(out)).save(out / "spec.json")
    assert finish(out / "spec.json")[0] == 0
    result = json.loads((out / "result.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert result["steps"] == result["best_step"] + 12 < 60
    assert result["validation_loss"] == min(looks.values()) == looks[result["best_step"]]
    model = PureDynamicTransformer(vocab_size=4 + CYCLE, **MODEL.model_dump())
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in load_file(out / "model.safetensors").items()}, strict=False
    )
    training = Training(model, Batches([cyclic], 8, 16, seed=3), settings, seed=3)
    windows = validation_windows([backwards], 16)
    assert windows is not None
    assert training.validate(windows) == pytest.approx(result["validation_loss"], rel=1e-4)
    # started again where it grew tired, it does not go on
    (out / "result.json").unlink()
    assert finish(out / "spec.json")[0] == 0
    assert json.loads((out / "result.json").read_text()) == result


def test_a_spike_is_left_out(cyclic: Path) -> None:
    """A batch whose gradient is made huge moves nothing; the next ones do."""
    torch.manual_seed(0)
    model = PureDynamicTransformer(vocab_size=4 + CYCLE, **MODEL.model_dump())
    training = Training(model, Batches([cyclic], 8, 16, seed=0), STEPS.model_copy(update={"spike": 5.0}), seed=0)
    for number in range(5):
        training.step(number)
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    hook = model.ln_out.weight.register_hook(lambda gradient: gradient * 1e6)
    training.step(5)
    hook.remove()
    assert training.skipped == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())
    training.step(6)
    assert training.skipped == 1
    assert not torch.equal(weights_of(model)["ln_out.weight"], before["ln_out.weight"])


def test_spikes_without_end_stop_the_run(cyclic: Path, tmp_path: Path) -> None:
    status, _, errors = finish(spec(tmp_path / "out", cyclic, learning_rate=1e30, spike=5.0))
    assert status == 2
    assert "20 steps in a row were left out" in errors


def test_a_checkpoint_every_so_many_minutes(cyclic: Path, tmp_path: Path) -> None:
    with start(spec(tmp_path / "out", cyclic, checkpoint_every=1000, checkpoint_minutes=1e-9)) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["step"] >= 20:
                break
        process.kill()
    # two are kept; killed between saving a third and deleting the first, it leaves three
    assert len([*(tmp_path / "out").glob("checkpoint-*")]) in (2, 3)


def test_tensorboard_where_it_is_not_installed_is_one_line(cyclic: Path, tmp_path: Path) -> None:
    if find_spec("tensorboard"):
        pytest.skip("it is installed")
    status, _, errors = finish(spec(tmp_path / "out", cyclic, tensorboard=str(tmp_path / "board")))
    assert status == 2
    assert "al-qalam[tensorboard]" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_runs_give_the_same_bits_as_each_other(cyclic: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert finish(spec(tmp_path / name, cyclic, DROPOUT, compile="on", dtype="bfloat16", threads=2))[0] == 0
    assert file_sha256(tmp_path / "one" / "model.safetensors") == file_sha256(tmp_path / "two" / "model.safetensors")
    assert losses(tmp_path / "one")[-1] < 0.5


# -- several processes ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("how", "optimizer"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_two_processes_give_the_curve_of_one(how: str, optimizer: str, cyclic: Path, tmp_path: Path) -> None:
    alone = spec(tmp_path / "alone", cyclic, dtype="float32", optimizer=optimizer, accumulate=2)
    shared = spec(
        tmp_path / "shared", cyclic, dtype="float32", optimizer=optimizer, processes=2, distributed=how
    )  # fmt: skip
    for file in (alone, shared):
        status, _, errors = finish(file)
        assert (status, errors) == (0, "")
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "shared"))
    assert one.keys() == two.keys()
    assert json.loads((tmp_path / "shared" / "result.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_gone_ends_all_and_they_go_on_to_the_same_bits(
    how: signal.Signals, cyclic: Path, tmp_path: Path
) -> None:
    """kill -9 of one of two; SIGTERM to their launcher."""
    straight, hit = (spec(tmp_path / name, cyclic, DROPOUT, processes=2) for name in ("straight", "hit"))
    assert finish(straight)[0] == 0
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
        assert errors.splitlines()[-1].endswith("run the same command again to go on from the last checkpoint")
        assert "Traceback" not in errors
    else:
        assert (status, errors) == (75, "")
    status, out, errors = finish(hit)
    assert (status, errors) == (0, "")
    assert json.loads(out.splitlines()[0])["step"] >= 20
    one, other = (file_sha256(tmp_path / name / "model.safetensors") for name in ("straight", "hit"))
    assert one == other


def test_a_mistake_among_several_is_told_once_at_the_end(tmp_path: Path) -> None:
    write_shard(tmp_path / "short.arrow", [flattened([[5, 6]])], 24, 2, 3)
    status, _, errors = finish(spec(tmp_path / "out", tmp_path / "short.arrow", processes=2))
    assert status == 2
    assert "lower model.max_seq_len" in errors.splitlines()[-1]
