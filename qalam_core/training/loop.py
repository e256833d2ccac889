"""The training loop: steps, logging, validation and checkpoints; a run that is stopped resumes to the same bits.
Writes model.safetensors, metrics.jsonl and result.json into the folder of its `Spec`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

from qalam_core.errors import TrainingError
from qalam_core.files import digest, replace_file, sha256_file
from qalam_core.model import BLOCKS
from qalam_core.tokens.shards import Batches, Mixture, flat
from qalam_core.training import checkpoints
from qalam_core.training.distributed import Stop, World, is_peer_loss
from qalam_core.training.early_stop import EarlyStopping
from qalam_core.training.hardware import Numerics
from qalam_core.training.metrics import Meter, MetricsLog, NullMetrics
from qalam_core.training.optimizers import learning_rate
from qalam_core.training.spec import METRICS, RESULT, STATE, STOPPED, WEIGHTS, Spec, model_config
from qalam_core.training.step import Training, flops_per_token, under, weights_of

_STATUS_SECONDS = 5.0  # without a line of metrics.jsonl, the parent learns so often how training goes
VALIDATION_WINDOWS = 256  # bounded, so that a validation pass takes the same time on any corpus


def validation_windows(shards: Sequence[Path], length: int) -> npt.NDArray[np.int64] | None:
    """Up to VALIDATION_WINDOWS non-overlapping (length + 1) windows of the shards; None when too short."""
    windows: list[npt.NDArray[Any]] = []
    for ids in map(flat, shards):
        count = min((len(ids) - 1) // length, VALIDATION_WINDOWS - len(windows))
        windows += [ids[n * length : n * length + length + 1] for n in range(max(0, count))]
    return np.stack(windows).astype(np.int64) if windows else None


def _diverged(out: Path, what: str) -> TrainingError:
    good = checkpoints.newest_step(out)
    kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint, of step {good}, is kept"
    return TrainingError(f"{what}; {kept}; lower train.learning_rate or train.clip, or raise train.warmup")


def _build(spec: Spec, world: World, device: torch.device) -> Training:
    settings = spec.settings
    torch.set_num_threads(settings.optimisation.threads)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(), which imports the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(settings.seed)
    config = model_config(settings.model, settings.vocab_size)
    model = BLOCKS[config.block](**config.arguments(), dropout=settings.model.dropout)
    if settings.optimisation.distributed == "ddp" or world.size == 1:
        model = model.to(device)  # fsdp moves each process's shard
    shards, batch_size = [Path(path) for path in spec.tokens], settings.optimisation.batch_size
    mixture = Mixture.load(settings.weights, spec.copies)
    batches = Batches(shards, batch_size, settings.model.max_seq_len, settings.seed, mixture)
    return Training(model, batches, settings.optimisation, settings.seed, world, device)


def run(spec: Spec, stop: Stop, world: World, device: torch.device) -> int:
    """Train to the last step, from the newest checkpoint if there is one; -> exit status, STOPPED after a signal."""
    settings, monitoring, out = spec.settings.optimisation, spec.monitoring, Path(spec.out)
    training = _build(spec, world, device)
    parameters = training.model.count_parameters()
    context = training.model.max_seq_len
    windows = validation_windows([Path(p) for p in spec.validation], context)
    if settings.patience and windows is None:
        raise TrainingError(
            "train.patience needs the validation split, and that is shorter than the context; raise "
            "corpus.validation, or set train.patience to 0"
        )
    early, done = EarlyStopping(settings.patience), 0

    conditions = _conditions(spec, training.numerics)
    checkpoint, note = checkpoints.find(out, conditions), ""
    if not checkpoint and spec.elsewhere:
        try:
            checkpoint = checkpoints.find(Path(spec.elsewhere), conditions)
        except TrainingError as error:  # this machine's results are its own
            note = f"another machine's training is not continued: {str(error).partition(' and would')[0]}"
    if checkpoint:
        tensors, done = checkpoint.tensors(), checkpoint.done
        training.load(tensors, checkpoint.notes)
        early.load(tensors, checkpoint.notes)
        del tensors
    elif spec.initial:
        training.begin(load_file(spec.initial))
    world.barrier()  # all have read the checkpoint, which the first process may soon replace
    metrics = MetricsLog(out / METRICS, done, monitoring.tensorboard) if world.rank == 0 else NullMetrics()
    saved, reported = 0.0, -math.inf

    def save() -> None:
        nonlocal saved
        tensors, notes = training.state()
        more, noted = early.state()
        if world.rank == 0:
            checkpoints.write(out, done, {**tensors, **more}, {**notes, **noted}, conditions)
        saved = time.monotonic()

    def validate() -> float | None:
        if windows is None:
            return None
        loss = training.validate(windows)
        metrics.write({"step": done, "validation_loss": loss})
        early.update(loss, done, lambda: weights_of(training.model))
        return loss

    @contextmanager
    def saving_on_peer_loss() -> Iterator[None]:
        """Save the state after `done` steps if another process exited."""
        try:
            yield
        except Exception as error:
            if world.size > 1 and is_peer_loss(error) and settings.distributed == "ddp":
                save()  # needs no other process
            raise

    metrics.send({"step": done, "steps": settings.steps, "note": note, **asdict(training.numerics)})
    losses: list[Tensor] = []  # read from the device only when logged
    meter, saved = Meter(training.device, flops_per_token(training.model), world.size), time.monotonic()
    tokens = settings.batch_size * context
    for number in range(done, done if early.should_stop else settings.steps):
        with saving_on_peer_loss():
            loss, norm = training.step(number)
        done = number + 1
        losses.append(loss)
        due = time.monotonic() - saved > 60 * monitoring.checkpoint_minutes
        with saving_on_peer_loss():
            stopping, due = world.any(bool(stop), due)
        last = done == settings.steps
        saving = last or stopping or due or done % monitoring.checkpoint_every == 0
        if saving or done % monitoring.log_every == 0:
            values = world.mean(torch.stack(losses)).tolist()
            finite = [value for value in values if math.isfinite(value)]
            if len(finite) < len(values) and not settings.spike:
                bad = next(i for i, value in enumerate(values) if not math.isfinite(value))
                raise _diverged(out, f"the loss became {values[bad]} at step {done - len(values) + bad + 1}")
            # the loss is that of the weights before the step, so it does not show this
            if saving and not training.is_finite():
                raise _diverged(out, f"the weights stopped being finite by step {done}")
            metrics.write({
                "step": done, "loss": sum(finite) / max(1, len(finite)),
                "learning_rate": learning_rate(settings, number), "gradient_norm": norm.item(),
                **meter.read(len(values) * tokens), **({"skipped": training.skipped} if settings.spike else {}),
            })  # fmt: skip
            losses.clear()
            reported = time.monotonic()
        elif world.rank == 0 and time.monotonic() - reported > _STATUS_SECONDS:
            # of this process alone, so that the others need not agree on the time
            metrics.send({
                "step": done, "loss": losses[-1].item(), "tokens_per_second": round(meter.rate(len(losses) * tokens)),
            })  # fmt: skip
            reported = time.monotonic()
        if done % spec.validate_every == 0 and not last:
            with meter.paused():
                validate()
        if saving or early.should_stop:
            save()
        if early.should_stop:
            break
        if stopping and not last:
            return STOPPED
    validation = early.loss if early.should_stop else validate()
    if early.weights is not None:  # all processes hold the same
        training.load_weights(early.weights)
        validation = early.loss
    state, _ = training.state()
    if world.rank == 0:
        checkpoints.write_tensors(out / WEIGHTS, under("model.", state), {})
        checkpoints.write_tensors(out / STATE, state, {})
        result = {
            "parameters": parameters, "steps": done, "validation_loss": validation,
            "tokens_seen": done * tokens, "epochs": done / training.batches.per_epoch,
            "sources": {
                name: {"tokens": size, "read": read} for name, (size, read) in training.batches.read(done).items()
            },
            "torch": torch.__version__,
            **asdict(training.numerics), "threads": settings.threads, "processes": world.size,
            "best_step": early.step if early.weights is not None else None,
        }  # fmt: skip
        # written last, and atomically: where it exists, training is done
        replace_file(out / RESULT, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    world.barrier()
    return 0


def _conditions(spec: Spec, numerics: Numerics) -> dict[str, str]:
    """Everything that the weights depend on, by name; it must be the same when a run is resumed."""
    settings = spec.settings
    found: dict[str, object] = {
        "torch": torch.__version__, "vocab_size": settings.vocab_size, "seed": settings.seed,
        **settings.model.canonical(), **settings.optimisation.canonical(), **asdict(numerics),
        "tokens": _short_digest(spec.tokens),
    }  # fmt: skip
    if spec.initial:
        found["initial weights"] = _short_digest([spec.initial])
    if settings.weights:
        found["weights of sources"] = json.dumps(settings.weights, sort_keys=True)
    if spec.copies:
        found["copies"] = _short_digest([spec.copies])
    if settings.validate_every:
        found["validate_every"] = settings.validate_every
        found["validation tokens"] = _short_digest(spec.validation)
    return {name: str(value) for name, value in found.items()}


def _short_digest(paths: Sequence[str]) -> str:
    return digest([sha256_file(Path(path)) for path in paths])[:12]
