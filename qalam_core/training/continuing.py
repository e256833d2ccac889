"""What a continued training reads: the documents that are new, and a share of those that were read before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qalam_core.package.runtime.architecture import END, START
from qalam_core.recipe import Continuing, Optimisation
from qalam_core.tokens.shards import Labels, documents, labels, write_shard


def write_reading(
    path: Path, tokens: Sequence[Path], new: Sequence[npt.NDArray[np.bool_]], replay: float, least: int,
    vocab_size: int, seed: Sequence[int],
) -> int:  # fmt: skip
    """Write the new documents of token shards as one shard, mixed with others that are drawn; -> its tokens.

    The others are a share `replay` of the tokens, or as many as make `least` tokens in all; fewer where there are no
    more. Draws and order are a function of `seed`. Memory: what is written, at 2 bytes per token.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    everything = [ids for shard in tokens for ids in documents(shard)]
    is_new, sizes = np.concatenate(new), np.array([len(ids) for ids in everything])
    size = int(sizes[is_new].sum())
    wanted = max(size * replay / (1 - replay), least - size)
    drawn = random.permutation(np.flatnonzero(~is_new))
    before = np.cumsum(sizes[drawn]) - sizes[drawn]
    chosen = random.permutation(np.concatenate([np.flatnonzero(is_new), drawn[before < wanted]]))
    ids = np.concatenate([everything[place][1:-1] for place in chosen])  # without START and END
    who = Labels.joined([labels(shard) for shard in tokens]).take(chosen)
    _, written = write_shard(path, [(ids, sizes[chosen] - 2)], vocab_size, START, END, who)
    return written


def schedule(settings: Optimisation, continuing: Continuing, tokens: int, context: int) -> Optimisation:
    """The settings of a training that continues, on a shard of `tokens` tokens.

    The rate warms up to `rewarm` of the peak, and decays again, within `epochs_of_new` passes over them.
    """
    return settings.model_copy(update={
        "learning_rate": settings.learning_rate * continuing.rewarm,
        "steps": max(1, math.ceil(continuing.epochs_of_new * tokens / (settings.batch_size * context))),
    })  # fmt: skip
