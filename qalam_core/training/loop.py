"""Training: one step, one loop, and checkpoints from which the loop goes on bit for bit.
Takes a spec file with token shards and the recipe's model and train parts (`python -m qalam_core.training.loop
SPEC`), gives model.safetensors and metrics.jsonl; every metrics line also goes to standard output.
It does not know the store, the recipe's other parts, or who started it.

It runs as a process of its own, or several: it owns the signals, the thread count and the deterministic
switches. Everything random is a function of (seed, step, rank): the batch, and dropout's noise. So a checkpoint
needs no random state, and a killed run that is started again ends with the bits of one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qalam_core.errors import QalamError, TrainingError
from qalam_core.model import PureDynamicTransformer
from qalam_core.recipe import Model, Train
from qalam_core.store import DISK_ERRORS, file_sha256, replace_file
from qalam_core.tokens.shards import Batches, flat
from qalam_core.training import checkpoints
from qalam_core.training.distributed import (
    PEER_LOST,
    Stop,
    World,
    is_peer_loss,
    launch,
    leave,
    leave_message,
    like,
    mine,
    shard,
    whole,
)
from qalam_core.training.hardware import Numerics, choose_device, choose_numerics
from qalam_core.training.loss import Objective
from qalam_core.training.metrics import Journal, Meter, Silence
from qalam_core.training.optimizers import Optimizers, learning_rate

__all__ = ["Spec", "Training", "weights_of"]

log = logging.getLogger(__name__)

STOPPED = 75  # exit status after a signal: the checkpoint is written, start again to go on (EX_TEMPFAIL)
DISK_FAILED = 74  # exit status when a file cannot be written: standard error opens with the errno (EX_IOERR)
VALIDATION_WINDOWS = 256  # a bounded look, so that validating costs the same on any corpus
SKIPS = 20  # so many steps left out in a row are no spike


@dataclass(frozen=True)
class Spec:
    """What `python -m qalam_core.training.loop` reads; paths are absolute."""

    model: Model
    train: Train
    vocab_size: int
    seed: int
    tokens: tuple[str, ...]
    validation: tuple[str, ...]
    out: str
    initial: str = ""  # weights to start from; at random when empty

    def save(self, path: Path) -> None:
        """Write as JSON."""
        data = {**asdict(self), "model": self.model.canonical(), "train": self.train.canonical()}
        path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Spec:
        """Read what `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        model, train = Model(**data.pop("model")), Train(**data.pop("train"))
        return cls(model=model, train=train, **data)

    def conditions(self, numerics: Numerics) -> dict[str, str]:
        """Everything that the weights depend on, by name: what must be the same when a run goes on."""
        shards = [file_sha256(Path(path)) for path in self.tokens]
        told = {
            "torch": torch.__version__, "vocab_size": self.vocab_size, "seed": self.seed, **self.model.canonical(),
            **self.train.deciding(), **asdict(numerics), "tokens": _short("".join(shards)),
        }  # fmt: skip
        if self.initial:
            told["initial weights"] = _short(file_sha256(Path(self.initial)))
        if self.train.patience:
            told["validation tokens"] = _short("".join(file_sha256(Path(path)) for path in self.validation))
        return {name: str(value) for name, value in told.items()}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU, a tied head left out: what checkpoints and packages hold."""
    tied = getattr(model, "tied", False)
    state = {name: t for name, t in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    return {name: whole(t.detach()).cpu().contiguous() for name, t in state.items()}


class Training:
    """A model, its optimizers and its batches; `step(n)` does the n-th step and nothing else."""

    def __init__(
        self, model: PureDynamicTransformer, batches: Batches, settings: Train, seed: int, world: World | None = None,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.settings, self.seed = model, batches, settings, seed
        self.world = world or World()
        self.device = device or model.device
        self.numerics = choose_numerics(settings, self.device, model.count_parameters(), model.max_seq_len)
        dtype = getattr(torch, self.numerics.dtype)
        self.objective = Objective(model, dtype, self.numerics.compile, settings.z_loss)
        self._run: nn.Module = self.objective
        if self.world.size > 1 and settings.distributed == "fsdp":
            self._run = shard(model.blocks, self.objective)
        elif self.world.size > 1:
            self._run = DistributedDataParallel(self.objective)
        self._named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in self._named]
        self.optimizers = Optimizers(self._named, settings)
        self.norm_average, self.skipped, self._skipped_in_row = 0.0, 0, 0

    def _windows(self, rows: npt.NDArray[np.int64]) -> Tensor:
        windows_BT = torch.from_numpy(rows)
        if self.device.type == "cuda":
            windows_BT = windows_BT.pin_memory().to(self.device, non_blocking=True)
        return windows_BT

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Step `number` (from 0) -> this process's mean loss in nats and the gradient norm, still on the device."""
        # dropout's noise: another one for each step and process
        torch.manual_seed(((self.seed << 32) + number + self.world.rank * 0x9E3779B97F4A7C15) % (1 << 64))
        self.optimizers.zero_grad()
        share = np.split(self.batches[number], self.world.size)[self.world.rank]
        parts = np.split(share, self.settings.accumulate)
        total = torch.zeros((), device=self.device)
        for index, part in enumerate(parts):
            with self._gradients_are_shared(index == len(parts) - 1):
                loss = self._run(self._windows(part), 1 / len(parts))
                loss.backward()
            total += loss.detach()
        norm = whole(nn.utils.clip_grad_norm_(self._parameters, self.settings.clip))
        if not (self.settings.spike and self._is_spike(norm.item())):
            self.optimizers.step(number)
        return total, norm

    def _gradients_are_shared(self, now: bool) -> Any:
        """Only the last part of a batch need wait for the other processes."""
        if isinstance(self._run, DistributedDataParallel) and not now:
            return self._run.no_sync()
        return nullcontext()

    def _is_spike(self, norm: float) -> bool:
        """Whether to leave a step out; its gradient norm then counts for nothing."""
        if not math.isfinite(norm) or norm > self.settings.spike * self.norm_average > 0:
            self.skipped += 1
            self._skipped_in_row += 1
            if self._skipped_in_row == SKIPS:
                raise TrainingError(
                    f"{SKIPS} steps in a row were left out as spikes (the last gradient norm is {norm:.4g}); "
                    "lower train.learning_rate, or raise train.spike"
                )
            return True
        self.norm_average = norm if not self.norm_average else 0.98 * self.norm_average + 0.02 * norm
        self._skipped_in_row = 0
        return False

    def validate(self, windows: npt.NDArray[np.int64]) -> float:
        """Mean loss in nats over (N, T + 1) windows, dropout off; every process looks at all of them."""
        size = max(1, self.settings.batch_size // (self.settings.accumulate * self.world.size))
        parts = np.split(windows, range(size, len(windows), size))
        self._run.eval()
        with torch.no_grad():
            losses = [self._run(self._windows(part)) * len(part) for part in parts]
        self._run.train()
        return float(torch.stack(losses).sum()) / len(windows)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """-> tensors by name, and plain numbers: all that a later `load` needs to go on to the same bits."""
        tensors = {f"model.{name}": t for name, t in weights_of(self.model).items()}
        for name, value in self.optimizers.state().items():
            tensors[f"optimizer.{name}"] = whole(value.detach()).cpu().contiguous()
        return tensors, {"norm": self.norm_average, "skipped": self.skipped, "in_row": self._skipped_in_row}

    def load(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.load_weights(_under("model.", tensors))
        state = _under("optimizer.", tensors)
        self.optimizers.load({
            name: like(value.to(self.device), parameter)
            for key, parameter in self._named for name, value in state.items() if name.partition(".")[2] == key
        })  # fmt: skip
        self.norm_average, self.skipped, self._skipped_in_row = notes["norm"], notes["skipped"], notes["in_row"]

    def is_finite(self) -> bool:
        """Whether all weights are numbers, in every process."""
        return not self.world.any(not all(bool(mine(p).isfinite().all()) for p in self._parameters))[0]

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put in every weight, by name."""
        for name, parameter in self._named:
            parameter.copy_(like(weights[name].to(self.device), parameter))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@dataclass
class _Best:
    """The best weights on the validation split so far, for a training that may stop early."""

    patience: int
    loss: float = math.inf
    step: int = 0
    waited: int = 0
    weights: dict[str, Tensor] | None = None

    @property
    def tired(self) -> bool:
        """Whether it is time to stop."""
        return 0 < self.patience <= self.waited

    def look(self, loss: float, step: int, model: nn.Module) -> None:
        """Take note of a validation loss after `step` steps."""
        if self.patience and loss < self.loss:
            weights = {name: tensor.clone() for name, tensor in weights_of(model).items()}
            self.loss, self.step, self.waited, self.weights = loss, step, 0, weights
        else:
            self.waited += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"best.{name}": tensor for name, tensor in (self.weights or {}).items()}
        return tensors, {"best": [self.loss, self.step, self.waited] if self.weights else None}

    def load(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        if notes["best"]:
            self.loss, self.step, self.waited = notes["best"]
            self.weights = _under("best.", tensors)


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


def _flops(training: Training) -> float:
    """Operations a token: 6 for each weight of a matrix (a tied head is one), and attention's own."""
    model = training.model
    matrices = model.count_parameters() - model.pos_embedding.numel()
    if not model.tied:
        matrices -= model.embedding.weight.numel()  # rows are looked up, not multiplied
    return 6.0 * matrices + 12.0 * model.num_layers * model.dim * model.max_seq_len


def _build(spec: Spec, world: World, device: torch.device) -> Training:
    torch.set_num_threads(spec.train.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.manual_seed(spec.seed)
    model = PureDynamicTransformer(vocab_size=spec.vocab_size, **spec.model.model_dump())
    if spec.train.distributed == "ddp" or world.size == 1:
        model = model.to(device)  # fsdp moves each process's share
    batches = Batches([Path(p) for p in spec.tokens], spec.train.batch_size, spec.model.max_seq_len, spec.seed)
    return Training(model, batches, spec.train, spec.seed, world, device)


def run(spec: Spec, stop: Stop, world: World, device: torch.device) -> int:
    """Train to the end of `spec`, from its newest checkpoint if there is one; -> exit status, 75 when stopped."""
    settings, out = spec.train, Path(spec.out)
    training = _build(spec, world, device)
    parameters = training.model.count_parameters()
    windows = validation_windows([Path(p) for p in spec.validation], spec.model.max_seq_len)
    if settings.patience and windows is None:
        raise TrainingError(
            "train.patience looks at the validation split, and that is shorter than the context; raise "
            "corpus.validation, or set train.patience to 0"
        )
    best, done = _Best(settings.patience), 0

    conditions = spec.conditions(training.numerics)
    checkpoint = checkpoints.find(out, conditions)
    if checkpoint:
        tensors, done = checkpoint.tensors(), checkpoint.done
        training.load(tensors, checkpoint.notes)
        best.load(tensors, checkpoint.notes)
        del tensors
    elif spec.initial:
        training.load_weights(load_file(spec.initial))
    world.wait()  # until all have read what the first may soon replace
    journal = Journal(out / "metrics.jsonl", done, settings.tensorboard) if world.rank == 0 else Silence()
    saved = 0.0

    def save() -> None:
        nonlocal saved
        tensors, notes = training.state()
        more, noted = best.state()
        if world.rank == 0:
            checkpoints.write(out, done, {**tensors, **more}, {**notes, **noted}, conditions)
        saved = time.monotonic()

    def look() -> float | None:
        if windows is None:
            return None
        loss = training.validate(windows)
        journal.write({"step": done, "validation_loss": loss})
        best.look(loss, done, training.model)
        return loss

    @contextmanager
    def among_peers() -> Iterator[None]:
        """Should another process be gone, save what there is after `done` steps."""
        try:
            yield
        except Exception as error:
            if world.size > 1 and is_peer_loss(error) and settings.distributed == "ddp":
                save()  # nothing of it needs the others
            raise

    journal.tell({"step": done, "steps": settings.steps, **asdict(training.numerics)})
    losses: list[Tensor] = []  # read from the device only when logged
    meter, saved = Meter(training.device, _flops(training), world.size), time.monotonic()
    tokens = settings.batch_size * spec.model.max_seq_len
    for number in range(done, done if best.tired else settings.steps):
        with among_peers():
            loss, norm = training.step(number)
        done = number + 1
        losses.append(loss)
        due = time.monotonic() - saved > 60 * settings.checkpoint_minutes
        with among_peers():
            stopping, due = world.any(bool(stop), due)
        last = done == settings.steps
        saving = last or stopping or due or done % settings.checkpoint_every == 0
        if saving or done % settings.log_every == 0:
            values = world.mean(torch.stack(losses)).tolist()
            finite = [value for value in values if math.isfinite(value)]
            if len(finite) < len(values) and not settings.spike:
                bad = next(i for i, value in enumerate(values) if not math.isfinite(value))
                raise _diverged(out, f"the loss became {values[bad]} at step {done - len(values) + bad + 1}")
            # the loss is that of the weights before the step
            if saving and not training.is_finite():
                raise _diverged(out, f"the weights stopped being finite by step {done}")
            journal.write({
                "step": done, "loss": sum(finite) / max(1, len(finite)),
                "learning_rate": learning_rate(settings, number), "gradient_norm": norm.item(),
                **meter.read(len(values) * tokens), **({"skipped": training.skipped} if settings.spike else {}),
            })  # fmt: skip
            losses.clear()
        if done % settings.validate_every == 0 and not last:
            look()
            meter.restart()
        if saving or best.tired:
            save()
        if best.tired:
            break
        if stopping and not last:
            return STOPPED
    validation = best.loss if best.tired else look()
    if best.weights is not None:  # all processes hold the same
        training.load_weights(best.weights)
        validation = best.loss
    weights = weights_of(training.model)
    if world.rank == 0:
        checkpoints.write_tensors(out / "model.safetensors", weights, {})
        result = {
            "parameters": parameters, "steps": done, "validation_loss": validation,
            "tokens_seen": done * tokens, "epochs": done / training.batches.per_epoch, "torch": torch.__version__,
            **asdict(training.numerics), "threads": settings.threads, "processes": world.size,
            **({"best_step": best.step} if best.weights is not None else {}),
        }  # fmt: skip
        # last, and whole or not at all: where it stands, training is done
        replace_file(out / "result.json", (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    world.wait()
    return 0


def main() -> int:
    """`python -m qalam_core.training.loop SPEC`: 0 done, 2 a user's mistake (one line on stderr), 74 disk, 75 stopped."""
    # cuBLAS reads it when the first handle is made; without it, deterministic mode refuses to run
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        spec = Spec.load(Path(sys.argv[1]))
        if spec.train.processes > 1 and "WORLD_SIZE" not in os.environ:
            return launch(["-m", "qalam_core.training.loop", sys.argv[1]], spec.train.processes, STOPPED)
        stop, device = Stop(), choose_device(spec.train.device)
        world = World.join(spec.train.processes, device.type)
        return run(spec, stop, world, device)
    except QalamError as error:
        return _mistake(str(error))
    except torch.OutOfMemoryError:
        return _mistake("the GPU has too little memory for this batch; raise train.accumulate")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        sys.stderr.write(f"{error.errno} {error.strerror}: {error.filename}\n")
        return DISK_FAILED
    except Exception as error:
        if "WORLD_SIZE" in os.environ and is_peer_loss(error):
            return PEER_LOST
        raise


def _mistake(line: str) -> int:
    leave_message(line)
    sys.stderr.write(f"{line}\n")
    return 2


if __name__ == "__main__":
    leave(main())
