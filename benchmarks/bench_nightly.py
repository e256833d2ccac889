"""Nights on a dated corpus: what each costs, and how good its model is, by how training starts.

    python -m benchmarks.bench_nightly --corpus DATED.jsonl [--base-days 3] [--nights 15] [--seeds 1] [--jobs 1]
        [--steps 600] [--documents N] [--strategies scratch warm continue killed] [--warm-steps N]
        [--scratch-nights N] [--set train.replay=0.5 ...] [--scratch-set train.decay=0.3 ...]

--corpus takes a jsonl file with the fields `text` and `date` (plain or .gz), of which the first 10 characters are the
day. The first days are the base, which is trained from scratch; then a day is added each night, and a model is built
from scratch on all days so far, warm (from the weights of the night before, on all days, for --warm-steps, a quarter of
--steps unless given), and by continuing the training of the night before. Every night's model becomes the champion,
whatever the gate says, and all have the tokenizer of the base. "killed" continues as well, and every fifth night its
process is killed in the middle of training, and the night is built again: its last package must be that of "continue",
to the bit. --documents takes no more than so many of each day; --set changes the recipe of all, and --scratch-set that
of the nights from scratch; --scratch-nights builds from scratch only on the last N nights, as such nights do not depend
on one another, and counts their mean for the others; --jobs plays as many seeds at once, for which train.threads
should be 1.

CPU seconds of each night are those of data stages, of training, and of everything after it. Bits per byte, of which
less is better, are on the next day's text, on the held-out documents of the base days, and on those of all days so far.

Targets of "continue": 0.15 of the CPU seconds from scratch; on the next day of the last five nights within 1% of it, or
better; on the base days at most 1% worse than at the start.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_split, read_texts
from qalam_core.evaluation.remeasure import remeasure
from qalam_core.pipeline.build import STAGES, History, InPlace, stages_in_order
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.publish import publish
from qalam_core.pipeline.stage import Stage
from qalam_core.pipeline.train import Train
from qalam_core.pipeline.vocab import Vocab
from qalam_core.progress import no_progress
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store

STARTS = {"scratch": "scratch", "warm": "champion", "continue": "continue", "killed": "continue"}
KILLED_EVERY = 5  # nights of "killed"
COST = 0.15  # of the CPU seconds from scratch
WORSE = 0.01  # bits per byte, as a share
MEASURED = ("next day", "base days", "all days")


class Night(NamedTuple):
    """A night's CPU seconds (data, training, the rest), its steps, its bits per byte on each of MEASURED, and the
    digest of its package.
    """

    seconds: tuple[float, float, float]
    steps: int
    bits: tuple[float, ...]
    package: str


@dataclass(frozen=True)
class Timed(InPlace):
    """Counts the CPU seconds of each kind of stage, and keeps a tokenizer once there is one."""

    tokenizer: list[Artifact] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self, stage: Stage) -> Artifact:
        """Run one stage."""
        if isinstance(stage, Vocab) and self.tokenizer:
            return self.tokenizer[0]
        before = _cpu_seconds()
        artifact = super().run(stage)
        self.seconds[stage.name] += _cpu_seconds() - before
        if isinstance(stage, Vocab):
            self.tokenizer.append(artifact)
        return artifact

    def by_part(self) -> tuple[float, float, float]:
        """CPU seconds before training, of it, and after it."""
        names = [kind.name for kind in STAGES]
        place = names.index(Train.name)
        parts = (["digests", *names[:place]], [Train.name], names[place + 1 :])
        before, training, after = (sum(self.seconds[name] for name in part) for part in parts)
        return before, training, after


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def by_day(corpus: Path) -> dict[str, list[str]]:
    """Day -> its texts, in order of the days."""
    days: dict[str, list[str]] = {}
    with io.TextIOWrapper(pa.input_stream(str(corpus), compression="detect"), encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            days.setdefault(record["date"][:10], []).append(record["text"])
    return dict(sorted(days.items()))


def bits_per_byte(package: Path, texts: Iterable[str], limit: float) -> float:
    """Of a package on the first `limit` MB of texts, normalised as the corpus is."""
    chosen, size = [], 0
    for text in texts:
        if size > limit * 1e6:
            break
        chosen.append(normalise(text, NORMALISATIONS["standard"]))
        size += len(chosen[-1].encode())
    found = remeasure(package, "the night", chosen, None, "cpu", no_progress)
    assert not found.problem, found.problem
    return sum(found.nats) / math.log(2) / sum(len(text.encode()) for text in chosen)


class Chain:
    """One strategy's store, to which each night adds a run."""

    def __init__(self, root: Path, tokenizer: list[Artifact]) -> None:
        self.store, self.tokenizer = Store(root), tokenizer

    def build(self, recipe: Recipe) -> tuple[Timed, list[Artifact]]:
        """All stages, on the text that has arrived."""
        executor, before = Timed(self.store, tokenizer=self.tokenizer), _cpu_seconds()
        files = resolve(recipe.corpus.sources, self.store.digests)
        executor.seconds["digests"] = _cpu_seconds() - before
        return executor, stages_in_order(recipe, files, History(Runs(self.store)), executor)

    def kill(self, recipe: Recipe) -> None:
        """Begin to build, and kill every process of it once the first steps of training are logged."""
        # forkserver would keep the torch of this process; the child leads a group, which the trainer joins
        process = get_context("spawn").Process(target=_in_own_group, args=(self, recipe))
        process.start()
        partial = self.store.root / "artifacts" / Train.name
        while process.is_alive() and not any(path.stat().st_size for path in partial.glob("*.partial/metrics.jsonl")):
            time.sleep(0.01)
        assert process.is_alive(), "the night ended before it was killed"
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()

    def night(self, recipe: Recipe, next_day: Sequence[str], fixed: list[str], limit: float) -> Night:
        """Build, publish and measure; the held-out documents of the first night become `fixed`."""
        runs = Runs(self.store)
        executor, artifacts = self.build(recipe)
        published = publish(runs, recipe, artifacts)
        if not published.champion:
            runs.promote(recipe.name, published.run, when="2000-01-01T00:00:00Z", why="night", who="benchmark")
        made = {artifact.stage: artifact for artifact in artifacts}
        if not fixed:
            fixed.extend(
                text for shard in read_split(made["prepare"].path, "test") for batch in read_texts(shard)
                for text in batch.column("text").to_pylist()
            )  # fmt: skip
        bits = (bits_per_byte(published.folder / PACKAGE, texts, limit) for texts in (next_day, fixed))
        night = Night(
            executor.by_part(), made[Train.name].manifest.facts["steps"],
            (*bits, published.record.bits_per_byte.model),
            made["export"].manifest.files[f"{PACKAGE}/manifest.json"].sha256,
        )  # fmt: skip
        print(f"seed {recipe.seed}, {self.store.root.name}: {night}", file=sys.stderr, flush=True)  # a run is long
        return night


def _in_own_group(chain: Chain, recipe: Recipe) -> None:
    os.setsid()
    chain.build(recipe)


def play(
    recipe: Recipe, from_scratch: Recipe, scratch_nights: int, days: dict[str, list[str]], base: int, nights: int,
    work: Path, strategies: Sequence[str], warm_steps: int, limit: float,
) -> dict[str, list[Night]]:  # fmt: skip
    """Strategy -> its nights; the base is built once, and `from_scratch` is the recipe of scratch's other nights."""
    dates = list(days)
    folder = Path(recipe.corpus.sources[0].path)
    folder.mkdir(parents=True)

    def arrive(date: str) -> None:
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in days[date])
        (folder / f"{date}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def of(strategy: str) -> Recipe:
        update = {"start": STARTS[strategy], "steps": warm_steps if strategy == "warm" else recipe.train.steps}
        return recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})

    for date in dates[:base]:
        arrive(date)
    fixed: list[str] = []
    first = Chain(work / "base", [])
    built = first.night(of("scratch"), days[dates[base]], fixed, limit)
    found = {name: [built] for name in strategies}
    for name in strategies:
        shutil.copytree(first.store.root, work / name)
    for night in range(1, nights + 1):
        arrive(dates[base + night - 1])
        for name in strategies:
            chain = Chain(work / name, first.tokenizer)
            if name == "killed" and night % KILLED_EVERY == 0:
                chain.kill(of(name))
            if name != "scratch" or night > nights - scratch_nights:
                chosen = from_scratch if name == "scratch" else of(name)
                found[name].append(chain.night(chosen, days[dates[base + night]], fixed, limit))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--base-days", type=int, default=3)
    parser.add_argument("--nights", type=int, default=15)
    parser.add_argument("--documents", type=int, default=None, help="of each day")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--jobs", type=int, default=1, help="seeds that are played at once")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--warm-steps", type=int, default=0)
    parser.add_argument("--scratch-nights", type=int, default=0, help="only the last; 0: all")
    parser.add_argument("--measure-mb", type=float, default=0.5, help="MB of each text that is measured")
    parser.add_argument("--strategies", nargs="+", choices=STARTS, default=["scratch", "warm", "continue"])
    parser.add_argument("--set", nargs="+", default=[], help="section.key=value of the recipe")
    parser.add_argument("--scratch-set", nargs="+", default=[], help="the same, of the nights from scratch")
    asked = parser.parse_args()
    if asked.corpus is None:
        print("not measured: --corpus names a jsonl file with the fields text and date")
        return 0
    if asked.jobs > 1:  # of numpy's and torch's thread pools, which would wait for one another
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    days = {day: texts[: asked.documents] for day, texts in by_day(asked.corpus).items()}
    nights = min(asked.nights, len(days) - asked.base_days - 1)
    results: dict[str, list[list[Night]]] = {name: [] for name in asked.strategies}
    with (
        tempfile.TemporaryDirectory(prefix="qalam-bench-") as scratch,
        ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool,
    ):
        playing = []
        for seed in range(1, asked.seeds + 1):
            work = Path(scratch, str(seed))
            work.mkdir()
            file = work / "nightly.toml"
            file.write_text(
                f'name = "nightly"\nseed = {seed}\n[[corpus.sources]]\npath = "days"\nname = "news"\n'
                f"[train]\nsteps = {asked.steps}\n[gate]\ntest_mb = {asked.measure_mb}\n", encoding="utf-8",
            )  # fmt: skip
            playing.append(pool.submit(
                play, Recipe.load(file, asked.set), Recipe.load(file, [*asked.set, *asked.scratch_set]),
                asked.scratch_nights or nights, days, asked.base_days, nights, work / "stores", asked.strategies,
                asked.warm_steps or asked.steps // 4, asked.measure_mb,
            ))  # fmt: skip
        for played in playing:
            for name, of_seed in played.result().items():
                results[name].append(of_seed)
    print(f"| night | start | steps | CPU s: data | training | after it | {' | '.join(MEASURED)} |", "|---" * 9 + "|",
          sep="\n")  # fmt: skip
    for night in range(nights + 1):
        for name in asked.strategies[: None if night else 1]:
            at = night if name != "scratch" or not night else night - 1 - nights
            of_seeds = [of_seed[at] for of_seed in results[name] if at == night or len(of_seed) >= 1 - at]
            if not of_seeds:
                continue
            columns = zip(*((*one.seconds, *one.bits) for one in of_seeds), strict=True)
            means = [statistics.mean(column) for column in columns]
            steps = statistics.mean(one.steps for one in of_seeds)
            cells = (*(f"{mean:.1f}" for mean in means[:3]), *(f"{mean:.4f}" for mean in means[3:]))
            print(f"| {night} | {name if night else 'base'} | {steps:.0f} | {' | '.join(cells)} |")
    missed = summary(results)
    return int(missed and asked.check)


def summary(results: dict[str, list[list[Night]]]) -> bool:
    """Print how the strategies compare; -> whether a target was missed."""
    missed = False
    for name, of in results.items():
        change = statistics.mean(nights[-1].bits[1] / nights[0].bits[1] for nights in of) - 1
        print(f"{name}: bits per byte of the base days, last night against the base: {change:+.2%}")
        missed |= name == "continue" and change > WORSE
        if name == "scratch" or "scratch" not in results:
            continue
        cost, scratch = (
            statistics.mean(sum(one.seconds) for nights in results[key] for one in nights[1:])
            for key in (name, "scratch")
        )
        behind = _last(results, name) / _last(results, "scratch") - 1
        print(
            f"{name}: {cost / scratch:.3f} of the CPU seconds of scratch; bits per byte of the next day, mean of the "
            f"last five nights: {behind:+.2%}"
        )
        missed |= name == "continue" and (cost / scratch > COST or behind > WORSE)
    if {"continue", "killed"} <= results.keys():
        pairs = zip(results["continue"], results["killed"], strict=True)
        same = all(one[-1].package == other[-1].package for one, other in pairs)
        print(f"killed every {KILLED_EVERY} nights: the last package {'is the same' if same else 'DIFFERS'}")
        missed |= not same
    return missed


def _last(results: dict[str, list[list[Night]]], name: str) -> float:
    """Mean bits per byte of the next day, over the last five nights."""
    return statistics.mean(night.bits[0] for nights in results[name] for night in nights[-5:])


if __name__ == "__main__":
    sys.exit(main())
