"""Held-out loss of variants of the block and of its training, after the same tokens: what helps, and what does not.

    python -m benchmarks.bench_variants [--corpus FILE] [--steps 800] [--seeds 2] [--only NAME ...]

The demo's recipe: 2 layers of 128, 16 sequences of 128 tokens a step, Muon at 2e-2; and the demo's corpus, of which
every twentieth document is held out. Each variant is trained with the same seeds and the same batches as the block
itself. The table has the mean loss in nats per token, its change against the block with the range over seeds, the
parameters, and the CPU seconds of a step against the block's.
Sources: value embeddings Zhou et al. 2024 (arXiv 2410.17897); soft cap Gemma 2 (arXiv 2408.00118); squared ReLU So et
al. 2021 (arXiv 2109.08668); averaging Sanyal et al. 2023 (arXiv 2306.03241).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_train import Data
from qalam_core.model import LlamaBlock, LlamaTransformer
from qalam_core.recipe import Model, Optimisation
from qalam_core.tokens.shards import Batches
from qalam_core.training.optimizers import learning_rate
from qalam_core.training.spec import model_config
from qalam_core.training.step import Training

MODEL = Model(block="llama", dim=128, num_heads=4, num_layers=2, max_seq_len=128)
SETTINGS: dict[str, Any] = {
    "batch_size": 16, "optimizer": "muon", "learning_rate": 2e-2, "schedule": "wsd", "decay": 0.3, "final": 0.1,
    "compile": "off", "dtype": "float32",
}  # fmt: skip


# -- blocks ---------------------------------------------------------------------------------------


class SquaredReLU(LlamaBlock):
    """relu(up(x))^2 instead of silu(gate(x)) * up(x), at one and a half times the width, which has as many weights."""

    def widen(self) -> None:
        """Replace the feed-forward."""
        dim, width = self.up.in_features, self.up.out_features * 3 // 2
        self.up, self.down = nn.Linear(dim, width, bias=False), nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.up.weight, std=0.02)
        nn.init.zeros_(self.down.weight)
        self.gate = _Nothing()  # type: ignore[assignment]

    def forward(self, x_BTC: Tensor, rotary_2TD: Tensor, *cache: Any) -> Tensor:
        plain_BTC = _attended(self, x_BTC, rotary_2TD)
        return plain_BTC + self.down(F.relu(self.up(self.ln2(plain_BTC))).square())


def _attended(block: LlamaBlock, x_BTC: Tensor, rotary_2TD: Tensor) -> Tensor:
    """The first half of a block."""
    up, down = block.up, block.down
    block.up = block.down = _Nothing()  # type: ignore[assignment]
    try:
        return LlamaBlock.forward(block, x_BTC, rotary_2TD)
    finally:
        block.up, block.down = up, down


class _Nothing(nn.Module):
    def forward(self, hidden_BTF: Tensor) -> Tensor:
        return hidden_BTF.new_zeros(())


class ValueEmbeddings(LlamaTransformer):
    """Each token has a row that is added to the values of each layer, by a learned share."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        width = self.num_kv_heads * self.head_dim
        self.value_embedding = nn.Embedding(self.vocab_size, width)
        nn.init.normal_(self.value_embedding.weight, std=0.02)
        self.shares = nn.Parameter(torch.full((self.num_layers,), 0.5))
        for index, block in enumerate(self.blocks):
            assert isinstance(block, LlamaBlock)
            block.v.register_forward_hook(self._adder(index))

    def _adder(self, index: int) -> Callable[..., Tensor]:
        return lambda module, given, v_BTE: v_BTE + self.shares[index] * self.value_embedding(self._ids_BT)

    def features(self, ids_BT: Tensor, *cache: Any) -> Tensor:
        self._ids_BT = ids_BT
        return super().features(ids_BT, *cache)


# -- trainings ------------------------------------------------------------------------------------


class Capped(nn.Module):
    """The loss with logits within a soft cap, from all logits at once."""

    def __init__(self, model: LlamaTransformer, cap: float) -> None:
        super().__init__()
        self.model, self.cap = model, cap

    def forward(self, windows_BT: Tensor, share: float = 1.0) -> Tensor:
        logits_BTV = self.model.lm_head(self.model.features(windows_BT[:, :-1]))
        capped_BTV = self.cap * torch.tanh(logits_BTV / self.cap)
        return F.cross_entropy(capped_BTV.flatten(0, 1), windows_BT[:, 1:].flatten()) * share


class Shaped:
    """Batches whose rows are shortened, or fewer, in the first part of training, at the same tokens in all."""

    def __init__(self, batches: Batches, steps: int, context: int = 1, rows: int = 1) -> None:
        self.batches, self.context, self.rows = batches, context, rows
        self.first = steps // 3 * rows  # steps of the first third of the tokens

    def __getitem__(self, step: int) -> Any:
        if step >= self.first:
            return self.batches[step - self.first + self.first // self.rows]
        whole = self.batches[step // self.rows]
        whole = np.split(whole, self.rows)[step % self.rows]
        size = (whole.shape[1] - 1) // self.context
        return np.concatenate([whole[:, part * size : part * size + size + 1] for part in range(self.context)])


@dataclass(frozen=True)
class Variant:
    """What differs from the block and its training."""

    model: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    transformer: type[LlamaTransformer] = LlamaTransformer
    block: type[LlamaBlock] | None = None
    cap: float = 0.0
    context: int = 1
    rows: int = 1
    averaged: float = 0.0  # share of the steps, the last ones, whose weights are averaged
    table_rate: float = 1.0  # of the embedding, as a multiple of the others
    table_std: float = 1.0


VARIANTS: dict[str, Variant] = {
    "the block": Variant(),
    "value embeddings": Variant(transformer=ValueEmbeddings),
    "soft cap of the logits, 15": Variant(cap=15.0),
    "squared ReLU": Variant(block=SquaredReLU),
    "untied head": Variant(model={"tied": False}),
    "half the context in the first third": Variant(context=2),
    "half the batch in the first third": Variant(rows=2),
    "weights averaged over the last 10 %": Variant(averaged=0.1),
    "averaged over the last 30 %, no decay": Variant(averaged=0.3, train={"final": 1.0}),
    "2 heads": Variant(model={"num_heads": 2}),
    "one head of keys and values": Variant(model={"num_kv_heads": 1}),
    "no norm of queries and keys": Variant(model={"qk_norm": False}),
    "rotary base 500": Variant(model={"rope_base": 500.0}),
    "dropout 0.1": Variant(model={"dropout": 0.1}),
    "weight decay 0.3": Variant(train={"weight_decay": 0.3}),
    "decay over the last 60 %": Variant(train={"decay": 0.6}),
    "decay to 0": Variant(train={"final": 0.0}),
    "rate 1e-2": Variant(train={"learning_rate": 1e-2}),
    "rate 4e-2": Variant(train={"learning_rate": 4e-2}),
    "three times the rate for the embedding": Variant(table_rate=3.0),
    "five times the embedding's std at first": Variant(table_std=5.0),
    "both": Variant(table_rate=3.0, table_std=5.0),
}


def trained(variant: Variant, data: Data, steps: int, seed: int) -> tuple[float, float, int]:
    """-> held-out nats per token, CPU seconds of a step, parameters."""
    torch.manual_seed(seed)
    model = MODEL.model_copy(update=variant.model or {})
    config = model_config(model, data.vocab_size)
    transformer = variant.transformer(**config.arguments(), dropout=model.dropout)
    if variant.block:
        for block in transformer.blocks:
            block.__class__ = variant.block
            block.widen()  # type: ignore[operator]
    with torch.no_grad():
        transformer.embedding.weight.mul_(variant.table_std)
    planned = steps + steps // 3 * (variant.rows - 1)
    settings = Optimisation(**{**SETTINGS, "steps": planned, **(variant.train or {})})
    batches = Batches([data.train], settings.batch_size, model.max_seq_len, seed)
    shaped = Shaped(batches, steps, variant.context, variant.rows)
    training = Training(transformer, shaped, settings, seed)  # type: ignore[arg-type]
    if variant.cap:
        training._run = Capped(transformer, variant.cap)
    if variant.table_rate != 1:
        _table_rate(training, variant.table_rate)
    mean: dict[str, Tensor] = {}
    count, since = 0, time.process_time()
    for number in range(planned):
        training.step(number)
        if number >= planned * (1 - variant.averaged):
            count += 1
            for name, tensor in transformer.state_dict().items():
                mean[name] = mean.get(name, torch.zeros_like(tensor)) + (tensor - mean.get(name, 0)) / count
    seconds = (time.process_time() - since) / steps
    if mean:
        transformer.load_state_dict(mean)
    return training.validate(data.windows(model.max_seq_len)), seconds, transformer.count_parameters()


def _table_rate(training: Training, times: float) -> None:
    """The embedding's group at its own rate; AdamW's update is in proportion to it."""
    *others, adamw = training.optimizers.all
    table, *rest = adamw.param_groups

    def step(number: int) -> None:
        rate = learning_rate(training.settings, number)
        for optimizer in others:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        table["lr"] = rate * times
        for group in rest:
            group["lr"] = rate
        adamw.step()

    training.optimizers.step = step  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="JSON Lines with a field `text`; the demo corpus")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # two of these beside each other take less time than two threads
    torch.use_deterministic_algorithms(True)
    seeds = range(1, asked.seeds + 1)
    with tempfile.TemporaryDirectory(prefix="qalam-bench-") as folder:
        data = Data(asked.corpus, Path(folder), 4096)
        print(f"{asked.steps} steps, {len(data.windows(128))} windows of held-out text, {asked.seeds} seeds")
        print(
            "| variant | nats per token | change | seeds | parameters | CPU seconds a step |",
            "|---" * 6 + "|",
            sep="\n",
        )
        found = [trained(VARIANTS["the block"], data, asked.steps, seed) for seed in seeds]
        base = np.array(found)
        for name in dict.fromkeys(["the block", *asked.only]):
            rows = base if name == "the block" else np.array(
                [trained(VARIANTS[name], data, asked.steps, seed) for seed in seeds]
            )  # fmt: skip
            changes = rows[:, 0] / base[:, 0] - 1
            low, high = changes.min(), changes.max()
            print(
                f"| {name} | {rows[:, 0].mean():.4f} | {changes.mean():+.2%} | {low:+.2%} to {high:+.2%} "
                f"| {int(rows[0, 2]):,} | {rows[:, 1].mean() / base[:, 1].mean():.2f} |", flush=True,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
