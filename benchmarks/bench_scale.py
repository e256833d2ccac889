"""The duplicate join on several workers: its processor time, its memory, and whether the corpus is the same.

    python -m benchmarks.bench_scale [--documents 4000000] [--words 16] [--partitions 8] [--check]

The corpus has so many documents of about so many words, drawn from a seed: one in ten is the same as an earlier one,
and one in ten nearly the same. It is read and filtered by two processes. Then its duplicates are joined, and the corpus
is prepared: in one partition, in as many as a build takes, with one and with two workers, and in PARTITIONS, one after
the other, as on so many machines. Each stage is a process of its own, whose processor time is that of all its threads
and whose memory is its peak, as the kernel reports it (VmHWM). At 16 words, 4 million documents are 0.63 GB; below two
million, the targets measure how processes start.

Targets: the join in PARTITIONS and the preparation take at most 15 % more processor time than in one partition; every
process stays below 1 GB; and the files of the corpus are the same, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from benchmarks.targets import Target, judged
from qalam_core.corpus.sources import resolve
from qalam_core.pipeline.filter import Filter
from qalam_core.pipeline.ingest import Ingest
from qalam_core.pipeline.match import Match, MatchSettings
from qalam_core.pipeline.prepare import Documents, Prepare
from qalam_core.pipeline.stage import Stage
from qalam_core.recipe import Recipe
from qalam_core.store import Artifact, Store

MORE = 1.15  # processor time, times that of one partition
MEMORY = 1000  # MB
FILE_BYTES = 16_000_000


class Cost(NamedTuple):
    """Of a stage: processor seconds, and MB of memory at its peak."""

    cpu: float
    peak: float


class Joined(NamedTuple):
    """A way to join, and what came out."""

    match: Sequence[Cost]
    seconds: float  # of all partitions, until the last one is done
    prepare: Cost
    files: dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4_000_000)
    parser.add_argument("--words", type=int, default=16, help="of a document, on average")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qalam-bench-") as scratch:
        work = Path(scratch)
        size = write(work / "corpus", asked.documents, asked.words)
        (work / "recipe.toml").write_text(
            'name = "scale"\nseed = 1\n[[corpus.sources]]\npath = "corpus"\nname = "text"\n', encoding="utf-8"
        )
        recipe = Recipe.load(work / "recipe.toml", ["corpus.filters=none", "corpus.min_chars=1"])
        files = resolve(recipe.corpus.sources)
        store = Store(work / "store")
        read, _, _ = built(store, [Ingest.of(file) for file in files], 2)
        filtered, filtering, _ = built(store, Filter.all_of(recipe, files, read), 2)
        print(
            f"{asked.documents:,} documents, {size / 1e6:.0f} MB, {len(filtered)} groups: filtered in "
            f"{sum(one.cpu for one in filtering):.1f} CPU s, {max(one.peak for one in filtering):.0f} MB\n\n"
            "| partitions | workers | match CPU s | seconds | MB | prepare CPU s | MB |\n|---|---|---|---|---|---|---|"
        )
        usual = len(Match.all_of(filtered))
        ways = [(1, 1), (usual, 1), (usual, 2), (asked.partitions, 1)]
        found = []
        for number, (of, workers) in enumerate(dict.fromkeys(ways)):
            found.append(joined(Store(work / f"joined-{number}"), recipe, Documents(read, filtered), of, workers))
            match, seconds, prepare, _ = found[-1]
            print(
                f"| {of} | {workers} | {sum(one.cpu for one in match):.2f} | {seconds:.1f} | "
                f"{max(one.peak for one in match):.0f} | {prepare.cpu:.2f} | {prepare.peak:.0f} |", flush=True,
            )  # fmt: skip
    one, many = (sum(cost.cpu for cost in (*way.match, way.prepare)) for way in (found[0], found[-1]))
    peak = max(cost.peak for way in found for cost in (*way.match, way.prepare))
    targets: list[Target] = [
        (f"processor time in {asked.partitions} partitions, of that in one", many / one, "at most", MORE),
        ("memory of a process, MB", max(peak, *(cost.peak for cost in filtering)), "at most", MEMORY),
        ("ways with other files", sum(way.files != found[0].files for way in found), "at most", 0),
    ]
    return judged(targets, asked.check)


def joined(store: Store, recipe: Recipe, documents: Documents, of: int, workers: int) -> Joined:
    """Join and prepare in a store of its own."""
    settings = [MatchSettings(partition=number, of=of) for number in range(of)]
    stages = [Match(each, tuple(documents.filtered)) for each in settings]
    matches, costs, seconds = built(store, stages, workers)
    ([corpus], [cost], _) = built(store, [Prepare.of(recipe, documents._replace(matches=matches))], 1)
    return Joined(costs, seconds, cost, {name: entry.sha256 for name, entry in corpus.manifest.files.items()})


def built(store: Store, stages: Sequence[Stage], workers: int) -> tuple[list[Artifact], list[Cost], float]:
    """The artifacts of stages, what each took in a process of its own, and the seconds of all."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        since = time.perf_counter()
        found = list(pool.map(measured, [store.root] * len(stages), stages))
        return [made for made, _ in found], [cost for _, cost in found], time.perf_counter() - since


def measured(root: Path, stage: Stage) -> tuple[Artifact, Cost]:
    """Build a stage in this process."""
    pa.array([0]).to_numpy()  # imports pandas, if it is installed: a worker does so once, as it imports the library
    before = time.process_time()
    made = Store(root).build(stage)
    cpu, status = time.process_time() - before, Path("/proc/self/status").read_text(encoding="utf-8")
    return made, Cost(cpu, int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)


def write(folder: Path, count: int, length: int) -> int:
    """Write a corpus in files of about FILE_BYTES; -> its bytes."""
    folder.mkdir()
    size, number, lines = 0, 0, list[str]()
    for line in (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents_of(count, length)):
        lines.append(line)
        size += len(line.encode())
        if size >= (number + 1) * FILE_BYTES:
            (folder / f"{number:05}.jsonl").write_text("".join(lines), encoding="utf-8")
            number, lines = number + 1, []
    if lines:
        (folder / f"{number:05}.jsonl").write_text("".join(lines), encoding="utf-8")
    return size


def documents_of(count: int, length: int) -> Iterator[str]:
    """Documents of half to one and a half times `length` words."""
    rng = random.Random(1)
    letters = "ابتثجحخدرسشصطعفقكلمنهوي"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(50_000)]
    earlier: list[list[str]] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.2 and earlier:
            text = rng.choice(earlier)
            if kind < 0.1:
                text = [*text, rng.choice(words)]
        else:
            text = rng.choices(words, k=rng.randint(length // 2, length + length // 2))
            if len(earlier) < 100_000:
                earlier.append(text)
            else:
                earlier[rng.randrange(len(earlier))] = text
        yield " ".join(text)


if __name__ == "__main__":
    sys.exit(main())
