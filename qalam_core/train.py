"""Training: one step, one loop, and checkpoints from which the loop goes on bit for bit.
Takes a spec file with token shards and the recipe's model and train parts (`python -m qalam_core.train
SPEC`), gives model.safetensors and metrics.jsonl; every metrics line also goes to standard output.
It does not know the store, the recipe's other parts, or who started it.

It runs as a process of its own: it owns the signals, the thread count and the deterministic switches.
Everything random is a function of (seed, step): the batch, and dropout's noise. So a checkpoint needs no
random state, and a killed run that is started again ends with the bits of one that was never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qalam_core.errors import QalamError, TrainingError
from qalam_core.model import PureDynamicTransformer
from qalam_core.recipe import Model, Train
from qalam_core.store import DISK_ERRORS, replace_file
from qalam_core.tokens import Batches, flat

__all__ = ["Spec", "Training", "weights_of"]

log = logging.getLogger(__name__)

STOPPED = 75  # exit status after a signal: the checkpoint is written, start again to go on (EX_TEMPFAIL)
DISK_FAILED = 74  # exit status when a file cannot be written: standard error opens with the errno (EX_IOERR)
VALIDATION_WINDOWS = 256  # a bounded look, so that validating costs the same on any corpus


@dataclass(frozen=True)
class Spec:
    """What `python -m qalam_core.train` reads; paths are absolute."""

    model: Model
    train: Train
    vocab_size: int
    seed: int
    tokens: tuple[str, ...]
    validation: tuple[str, ...]
    out: str

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


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU, a tied head left out: what checkpoints and packages hold."""
    tied = getattr(model, "tied", False)
    state = model.state_dict()
    return {name: t.detach().cpu().contiguous() for name, t in state.items() if not (tied and name == "lm_head.weight")}


def choose_device(wish: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; TrainingError when there is no GPU to be had."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise TrainingError("train.device is cuda, and torch sees no GPU here; set train.device to auto or cpu")
    return torch.device("cuda" if wish != "cpu" and torch.cuda.is_available() else "cpu")


class Training:
    """A model, its optimizer and its batches; `step(n)` does the n-th step and nothing else."""

    def __init__(self, model: PureDynamicTransformer, batches: Batches, settings: Train, seed: int) -> None:
        self.model, self.batches, self.settings, self.seed = model, batches, settings, seed
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in named]
        groups = [
            {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
        self._parameters = [p for _, p in named]
        self._run = torch.compile(model, dynamic=False) if settings.compile else model
        self._autocast = settings.dtype == "bfloat16"

    def learning_rate(self, number: int) -> float:
        """Linear from 0 to the peak over the warm-up, then a cosine down to a tenth of the peak."""
        warmup = max(1, round(self.settings.warmup * self.settings.steps))
        if number < warmup:
            return self.settings.learning_rate * (number + 1) / warmup
        done = (number - warmup) / max(1, self.settings.steps - warmup)
        return self.settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))

    def _loss(self, run: Callable[..., Any], batch: npt.NDArray[np.int64]) -> Tensor:
        ids = torch.from_numpy(batch)
        if self.model.device.type == "cuda":
            ids = ids.pin_memory().to(self.model.device, non_blocking=True)
        # THE shift, the only one: the label of a token is the token after it.
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._autocast):
            loss: Tensor = run(ids[:, :-1], ids[:, 1:])[1]
        return loss

    def step(self, number: int) -> tuple[Tensor, Tensor]:
        """Step `number` (from 0) -> mean loss in nats and gradient norm, both still on the device."""
        torch.manual_seed((self.seed << 32) + number)  # dropout's noise
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        parts = np.split(self.batches[number], self.settings.accumulate)
        total = torch.zeros((), device=self.model.device)
        for part in parts:
            loss = self._loss(self._run, part) / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.settings.clip)
        self.optimizer.step()
        return total, norm

    @torch.no_grad()
    def validate(self, windows: npt.NDArray[np.int64]) -> float:
        """Mean loss in nats over (N, T + 1) windows; leaves the model in training mode."""
        self.model.eval()
        size = max(1, self.settings.batch_size // self.settings.accumulate)
        parts = np.split(windows, range(size, len(windows), size))
        loss = sum(self._loss(self.model, part).item() * len(part) for part in parts) / len(windows)
        self.model.train()
        return loss

    # -- checkpoints ----------------------------------------------------------------------------

    def save(self, path: Path, done: int, fingerprint: Mapping[str, str]) -> None:
        """Write the state after `done` steps to `path`: whole or not at all."""
        tensors = {f"model.{name}": t for name, t in weights_of(self.model).items()}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value.detach().cpu().contiguous()
        _write_tensors(path, tensors, {"done": str(done), **fingerprint})

    def resume(self, path: Path) -> None:
        """Take over the state that `save` wrote."""
        tensors = load_file(path, device=str(self.model.device))
        weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
        self.model.load_state_dict(weights, strict=not self.model.tied)
        for name, parameter in zip(self._names, self._parameters, strict=True):
            state = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = state


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata)
    except SafetensorError as error:  # it keeps the disk's errno in its text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def _find_checkpoint(folder: Path, fingerprint: Mapping[str, str]) -> tuple[Path | None, int]:
    """The newest checkpoint and its step; TrainingError when it was made under other conditions."""
    for path in reversed(_checkpoints(folder)):
        try:
            with safe_open(path, "pt") as file:
                found = file.metadata()
        except SafetensorError:  # a disk that lost bytes: the one before it is as good, a few steps older
            log.warning("%s is damaged and left aside", path.name)
            path.unlink()
            continue
        changed = [
            f"{key} {found.get(key)} -> {value}" for key, value in fingerprint.items() if found.get(key) != value
        ]
        if changed:
            raise TrainingError(
                f"the checkpoint at step {found['done']} was made with other conditions ({', '.join(changed)}) and "
                f"would not go on to the same weights; put them back, or delete {folder} to start over"
            )
        return path, int(found["done"])
    return None, 0


def validation_windows(shards: Sequence[Path], length: int) -> npt.NDArray[np.int64] | None:
    """Up to VALIDATION_WINDOWS non-overlapping (length + 1) windows of the shards; None when too short."""
    windows: list[npt.NDArray[Any]] = []
    for ids in map(flat, shards):
        count = min((len(ids) - 1) // length, VALIDATION_WINDOWS - len(windows))
        windows += [ids[n * length : n * length + length + 1] for n in range(max(0, count))]
    return np.stack(windows).astype(np.int64) if windows else None


class _Stop:
    """Becomes true on SIGTERM, on SIGINT, or when whoever started us is gone (our standard input ends)."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._asked.set())
        if not sys.stdin.isatty():
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        self._asked.set()

    def __bool__(self) -> bool:
        return self._asked.is_set()


def _earlier_metrics(path: Path, done: int) -> Iterator[str]:
    """The lines of an interrupted run up to step `done`; what came later will come again."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= done:
                    yield line + "\n"
            except ValueError:  # the line that the kill cut short
                return


def _diverged(out: Path, what: str) -> TrainingError:
    good = max((int(path.stem.rpartition("-")[2]) for path in _checkpoints(out)), default=None)
    kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint, of step {good}, is kept"
    return TrainingError(f"{what}; {kept}; lower train.learning_rate or train.clip, or raise train.warmup")


def run(spec: Spec, stop: _Stop) -> None:
    """Train to the end of `spec`, from its newest checkpoint if there is one; SystemExit(75) when stopped."""
    settings, out = spec.train, Path(spec.out)
    device = choose_device(settings.device)
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(spec.seed)
    model = PureDynamicTransformer(vocab_size=spec.vocab_size, **spec.model.model_dump()).to(device)
    batches = Batches([Path(p) for p in spec.tokens], settings.batch_size, spec.model.max_seq_len, spec.seed)
    training = Training(model, batches, settings, spec.seed)
    windows = validation_windows([Path(p) for p in spec.validation], spec.model.max_seq_len)

    fingerprint = {"torch": torch.__version__, "device": device.type, "threads": str(settings.threads)}
    checkpoint, done = _find_checkpoint(out, fingerprint)
    if checkpoint:
        training.resume(checkpoint)
    metrics = out / "metrics.jsonl"
    earlier = list(_earlier_metrics(metrics, done))
    metrics.write_text("".join(earlier), encoding="utf-8")

    def tell(text: str) -> None:
        # whoever listened may be gone: that asks us to stop, and must not keep us from the checkpoint
        with suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), text.encode())

    def emit(line: dict[str, Any]) -> None:
        text = json.dumps(line) + "\n"
        with metrics.open("a", encoding="utf-8") as file:
            file.write(text)
        tell(text)

    def save() -> None:
        training.save(out / f"checkpoint-{done:09d}.safetensors", done, fingerprint)
        for old in _checkpoints(out)[:-2]:
            old.unlink()

    tell(json.dumps({"step": done, "steps": settings.steps}) + "\n")
    model.train()
    losses: list[Tensor] = []  # read from the device only when logged
    since = time.monotonic()
    for number in range(done, settings.steps):
        loss, norm = training.step(number)
        losses.append(loss)
        done = number + 1
        last = done == settings.steps
        stopping = bool(stop)
        saving = last or stopping or done % settings.checkpoint_every == 0
        if saving or done % settings.log_every == 0:
            values = torch.stack(losses).tolist()
            bad = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
            if bad is not None:
                raise _diverged(out, f"the loss became {values[bad]} at step {done - len(values) + bad + 1}")
            # the loss is that of the weights before the step
            if saving and not all(bool(p.isfinite().all()) for p in model.parameters()):
                raise _diverged(out, f"the weights stopped being finite by step {done}")
            seconds = time.monotonic() - since
            rate = len(values) * settings.batch_size * spec.model.max_seq_len / seconds
            line = {
                "step": done, "loss": sum(values) / len(values), "learning_rate": training.learning_rate(number),
                "gradient_norm": norm.item(), "tokens_per_second": round(rate),
            }  # fmt: skip
            emit(line)
            losses.clear()
            since = time.monotonic()
        if windows is not None and done % settings.validate_every == 0 and not last:
            emit({"step": done, "validation_loss": training.validate(windows)})
            since = time.monotonic()
        if saving:
            save()
        if stopping and not last:
            raise SystemExit(STOPPED)
    validation = training.validate(windows) if windows is not None else None
    if validation is not None:
        emit({"step": done, "validation_loss": validation})
    _write_tensors(out / "model.safetensors", weights_of(model), {})
    result = {
        "parameters": model.count_parameters(), "steps": settings.steps, "validation_loss": validation,
        "tokens_seen": settings.steps * settings.batch_size * spec.model.max_seq_len,
        "epochs": settings.steps / batches.per_epoch, "torch": torch.__version__, "device": device.type,
    }  # fmt: skip
    # last, and whole or not at all: where it stands, training is done
    replace_file(out / "result.json", (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())


def main() -> int:
    """`python -m qalam_core.train SPEC`: 0 done, 2 a user's mistake (one line on stderr), 74 disk, 75 stopped."""
    # cuBLAS reads it when the first handle is made; without it, deterministic mode refuses to run
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        run(Spec.load(Path(sys.argv[1])), _Stop())
    except QalamError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except torch.OutOfMemoryError:
        sys.stderr.write("the GPU has too little memory for this batch; raise train.accumulate\n")
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        sys.stderr.write(f"{error.errno} {error.strerror}: {error.filename}\n")
        return DISK_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
