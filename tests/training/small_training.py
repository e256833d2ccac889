"""A training run of a few seconds, in this process or in a subprocess."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from qalam_core.model import PureDynamicTransformer
from qalam_core.recipe import Model, Monitoring, Optimisation, Train
from qalam_core.tokens.shards import Batches, flattened, write_shard
from qalam_core.training.spec import Spec, TrainSettings, model_config
from qalam_core.training.step import Training
from tests.forks import Trainer

CYCLE = 20
VOCABULARY = 4 + CYCLE
MODEL = Model(dim=32, num_heads=2, num_layers=1, max_seq_len=16)
DROPOUT = Model(dim=32, num_heads=2, num_layers=1, max_seq_len=16, dropout=0.1)
LLAMA = MODEL.model_copy(update={"block": "llama", "num_kv_heads": 1, "dropout": 0.1})
STEPS = Train(
    steps=60,
    batch_size=8,
    learning_rate=0.01,
    threads=1,
    log_every=10,
    checkpoint_every=20,
    validate_every=30,
)


def write_tokens(path: Path, ids: list[int]) -> Path:
    """A token shard of one document."""
    write_shard(path, [flattened([ids])], VOCABULARY, 2, 3)
    return path


# -- in this process --------------------------------------------------------------------------------


def small_model() -> PureDynamicTransformer:
    return PureDynamicTransformer(**model_config(MODEL, VOCABULARY).arguments(), dropout=MODEL.dropout)


def training_of(model: PureDynamicTransformer, tokens: Path, settings: Optimisation = STEPS, seed: int = 0) -> Training:
    return Training(model, Batches([tokens], 8, 16, seed=seed), settings, seed=seed)


# -- in a subprocess --------------------------------------------------------------------------------


def spec_of(out: Path, tokens: Path, validation: Path, model: Model, train: Train) -> Spec:
    settings = TrainSettings(
        seed=3,
        model=model,
        vocab_size=VOCABULARY,
        optimisation=train.narrowed(Optimisation),
        validate_every=train.validate_every if train.patience else None,
    )
    return Spec(
        settings=settings,
        monitoring=train.narrowed(Monitoring),
        tokens=(str(tokens),),
        validation=(str(validation),),
        out=str(out),
    )


def spec(
    out: Path, tokens: Path, model: Model = MODEL, initial: str = "", elsewhere: str = "", **train: Any
) -> Path:  # fmt: skip
    """Write a specification; `train` overrides values of STEPS."""
    out.mkdir(exist_ok=True)
    made = spec_of(out, tokens, tokens, model, STEPS.model_copy(update=train))
    made.model_copy(update={"initial": initial, "elsewhere": elsewhere}).save(out / "spec.json")
    return out / "spec.json"


def start(file: Path) -> Trainer:
    command = [sys.executable, "-m", "qalam_core.training", str(file)]
    return Trainer(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(file: Path) -> tuple[int, str, str]:
    """-> exit status, standard output, standard error."""
    with start(file) as process:
        assert process.stdout and process.stderr and process.stdin
        out, errors = process.stdout.read(), process.stderr.read()
        return process.wait(), out, errors


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in metrics(out) if "loss" in line]
