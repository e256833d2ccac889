"""What the data stages of a night cost as text is added, at several sizes of the corpus.

    python -m benchmarks.bench_growth [--corpus FILE] [--sizes 30,1000] [--layouts file files] [--check]

FILE is JSON Lines with a field `text`; by default the demo corpus. Its sentences, with their words in a random order
so that no n-gram is repeated, make a corpus of each size, in MB, as one file of JSON Lines or as files of 1 MB. It is
read cold; then 0.1, 0.3, 1 and 3% are added, at the end of the file or as another file, in a chain of models that
continue, of hardly any steps. Training and what follows it is not counted.

The cost of a night is a line in its new text: the slope is CPU seconds for each MB, the intercept what a night costs in
which hardly anything is new, by least squares over all nights but the first, which also folds what could be held out
of the whole corpus. CPU seconds include the digests of the file. At last nothing is new: the seconds of a plan, and the
MB that it reads, with what is remembered of the files and without. Targets: on the night of 1% `prepare` costs at most
5% of preparing cold, which is `filter` and `prepare`; a plan of nothing new reads at most 5% of the text.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.bench_corpus import split_sentences
from benchmarks.bench_nightly import Chain
from benchmarks.texts import texts
from qalam_core.corpus.sources import resolve
from qalam_core.digests import SETTLED_SECONDS
from qalam_core.pipeline.plan import plan
from qalam_core.pipeline.publish import publish
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Store

STAGES = ("digests", "ingest", "filter", "match", "fold", "prepare", "tokenize", "fingerprint", "seen")
NIGHTS = (0.001, 0.003, 0.01, 0.03)  # new text, as a share of the corpus; the first one folds all of it
TARGET, READ_TARGET = 0.05, 0.05
LAYOUTS = {"file": math.inf, "files": 1.0}  # MB of text of each file, at most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="JSON Lines with a field `text`")
    parser.add_argument("--sizes", default="30", help="MB of text, one after the other")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    asked = parser.parse_args()
    sentences = [sentence for text in texts(asked.corpus) for sentence in split_sentences(text)]
    missed = False
    for size in map(int, asked.sizes.split(",")):
        for layout in asked.layouts:
            with tempfile.TemporaryDirectory(prefix="qalam-bench-") as scratch:
                missed |= measured(sentences, size, layout, Path(scratch))
    return int(missed and asked.check)


def measured(sentences: list[str], size: int, layout: str, work: Path) -> bool:
    """Print the table of one size; -> whether the target was missed."""
    lines = documents(sentences, random.Random(size))
    (work / "corpus").mkdir()
    recipe_file = work / "growth.toml"
    recipe_file.write_text(
        'name = "growth"\nseed = 1\n[[corpus.sources]]\npath = "corpus"\nname = "text"\n[corpus]\nfilters = "web"\n'
        '[tokenizer]\nvocab_size = 8000\nsample_mb = 8\n[model]\ndim = 32\nnum_heads = 2\nnum_layers = 1\n'
        "[train]\nsteps = 4\nepochs_of_new = 0.001\n[gate]\ntest_mb = 0.1\n", encoding="utf-8",
    )  # fmt: skip
    chain = Chain(work / "store", [])
    print(f"\n{size} MB, {layout}\n| new MB | {' | '.join(STAGES)} | all |", "|---" * (len(STAGES) + 2) + "|", sep="\n")
    rows = []
    for share in (1.0, *NIGHTS):
        added = append(work / "corpus", lines, share * size, LAYOUTS[layout])
        recipe = Recipe.load(recipe_file, [f"train.start={'scratch' if share == 1 else 'continue'}"])
        executor, artifacts = chain.build(recipe)
        runs = Runs(chain.store)
        run = publish(runs, recipe, artifacts).run
        if runs.champion(recipe.name) != run:
            runs.promote(recipe.name, run, when="2000-01-01T00:00:00Z", why="night", who="benchmark")
        seconds = [executor.seconds[stage] for stage in STAGES]
        rows.append([added, *seconds, sum(seconds)])
        print(f"| {added:.1f} | {' | '.join(f'{value:.2f}' for value in rows[-1][1:])} |", flush=True)
    table = np.array(rows)
    slope, intercept = np.polyfit(table[2:, 0], table[2:, -1], 1)
    place = 1 + STAGES.index("prepare")
    prepare, cold = table[1 + NIGHTS.index(0.01), place], table[0, place] + table[0, 1 + STAGES.index("filter")]
    print(
        f"cold: {table[0, -1] / table[0, 0]:.3f} CPU s/MB; a night: {intercept:.2f} s + {slope:.3f} s/MB of new text; "
        f"prepare of the night of 1%: {prepare / cold:.1%} of filter and prepare cold"
    )
    read = nothing_new(recipe, chain.store)
    return bool(prepare / cold > TARGET or read > READ_TARGET * table[:, 0].sum())


def nothing_new(recipe: Recipe, store: Store) -> float:
    """Print what plans of a build without new text take; -> MB that one reads with what is remembered."""
    time.sleep(SETTLED_SECONDS)  # what is younger is not remembered
    resolve(recipe.corpus.sources, store.digests)
    amounts = []
    for what, place in (("remembered", store), ("all read again", store.doubting())):
        since, before = time.perf_counter(), _read_mb()
        found = plan(recipe, place)
        reused = sum(row.action == "reuse" for row in found.rows)
        amounts.append(_read_mb() - before)
        print(
            f"nothing new, {what}: {time.perf_counter() - since:.2f} s and {amounts[-1]:.1f} MB read, "
            f"{reused} of {len(found.rows)} stages reused", flush=True,
        )  # fmt: skip
    return amounts[0]


def _read_mb() -> float:
    """What this process has read so far, also from memory that the system keeps of files."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(counts["rchar"]) / 1e6


def documents(sentences: list[str], rng: random.Random) -> Iterator[tuple[str, int]]:
    """Lines of JSON without end, each with its bytes of text."""
    while True:
        shuffled = []
        for sentence in rng.choices(sentences, k=rng.randint(6, 30)):
            words = sentence.split()
            rng.shuffle(words)
            shuffled.append(" ".join(words))
        text = ". ".join(shuffled) + "."
        yield json.dumps({"text": text}, ensure_ascii=False) + "\n", len(text.encode())


def append(folder: Path, lines: Iterator[tuple[str, int]], size: float, of_file: float) -> float:
    """Append documents of about `size` MB to the one file, or as files of `of_file` MB; -> MB of text."""
    written = 0.0
    while written < size:
        number = 0 if of_file == math.inf else len(list(folder.iterdir()))
        with Path(folder, f"{number:05}.jsonl").open("a", encoding="utf-8") as out:
            end = min(written + of_file, size)
            while written < end:
                line, count = next(lines)
                out.write(line)
                written += count / 1e6
    return written


if __name__ == "__main__":
    sys.exit(main())
