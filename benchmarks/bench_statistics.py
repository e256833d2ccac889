"""Whether the gate's intervals cover what they should, and whether its rules hold for a year of nights.

    python -m benchmarks.bench_statistics [--repetitions 4000] [--nights 365] [--check]

Coverage: 95% intervals of a change whose true value is known, over documents of equal, log-normal and Pareto sizes.
The noise of a document is independent of its size or grows with it, or longer documents change more. A year: every
night a model is trained, compared by the gate at its default settings, and becomes champion if it passes.
Targets: coverage of at least 0.94; with a hidden loss of 0.1% a night, the champion ends the year at most 3% worse; of
nights without loss, and of trainings with another seed, at most 1 in 200 is refused; of ten models each 1.9% worse than
the last, not all pass.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qalam_core.evaluation.comparison import Champion, compare
from qalam_core.evaluation.intervals import effective, intervals
from qalam_core.evaluation.results import Report
from qalam_core.recipe import Requirements

COVERAGE, WORST_YEAR, REFUSED, STEP = 0.94, 0.03, 1 / 200, 0.019
DOCUMENTS = (20, 50, 250)
NIGHT_SD = 0.002  # of bits per byte from one warm night to the next, as a share

Floats = NDArray[np.float64]
Random = np.random.Generator

SIZES: dict[str, Callable[[Random, int], Floats]] = {
    "equal": lambda random, n: np.full(n, 400.0),
    "log-normal, sigma 1.5": lambda random, n: random.lognormal(6, 1.5, n),
    "Pareto, exponent 2": lambda random, n: 200 * (1 + random.pareto(2, n)),
}
NOISES: dict[str, tuple[float, float]] = {  # exponent of the noise's growth, and the trend of the mean
    "independent of size": (0.0, 0.0),
    "grows with size": (0.25, 0.0),
    "longer documents change more": (0.0, 0.01),
}


def covered(sizes: str, noise: str, documents: int, repetitions: int, confidence: float = 0.95) -> float:
    """The share of intervals that contain the true change, which is that of all documents of such a kind."""
    random = np.random.default_rng([documents, *map(ord, sizes + noise)])
    growth, trend = NOISES[noise]
    typical = float(np.median(SIZES[sizes](np.random.default_rng(0), 100_001)))
    # the expected change of a byte, over many documents
    many = SIZES[sizes](np.random.default_rng(1), 4_000_000 if trend else 1)
    truth = float((many * (1.02 + trend * np.log(many / typical))).sum() / many.sum())
    hits = 0
    for _ in range(repetitions):
        size = SIZES[sizes](random, documents)
        champion = size * random.gamma(30, 1 / 30, documents)
        change = 1.02 + trend * np.log(size / typical)
        noisy = change + 0.03 * (size / typical) ** growth * random.standard_normal(documents)
        ((low, high),) = intervals([champion * noisy], [champion], confidence)
        hits += low <= truth <= high
    return hits / repetitions


@dataclass
class World:
    """Test documents, and models that differ from one another by level, seed and document."""

    documents: int = 250
    document_sd: float = 0.01
    seed_sd: float = NIGHT_SD
    random: Random = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self.size = np.maximum(50, self.random.lognormal(6, 1.0, self.documents)).astype(np.int64)
        self.nats = self.size * self.random.normal(1.0, 0.15, self.documents).clip(0.4)
        self.digests = tuple(f"{number:012x}" for number in range(self.documents))

    def measured(self, level: float) -> Report:
        """The report of a model whose true bits per byte are exp(level) times the first one's."""
        noise = self.random.normal(level + self.random.normal(0, self.seed_sd), self.document_sd, self.documents)
        return Report.model_construct(  # type: ignore[call-arg]  # a comparison reads no more
            document_nats=tuple((self.nats * np.exp(noise)).tolist()), document_bytes=tuple(self.size.tolist()),
            document_digests=self.digests, document_slices=(), sources={},
        )  # fmt: skip


@dataclass
class Line:
    """A line of champions."""

    world: World
    gate: Requirements = field(default_factory=Requirements)
    champions: list[tuple[float, Champion]] = field(default_factory=list)  # newest first, with their true levels

    def __post_init__(self) -> None:
        self.champions.insert(0, (0.0, Champion(self.world.measured(0.0))))

    def night(self, loss: float) -> bool:
        """Train from the champion, and promote the model if it passes; -> whether it passed."""
        level, champion = self.champions[0]
        report = self.world.measured(level + loss)
        comparison, checks = compare(report, champion, (one for _, one in self.champions[1:]), self.gate)
        if not all(check.passed for check in checks):
            return False
        assert comparison
        self.champions.insert(0, (level + loss, Champion(report, comparison.level)))
        return True


def drifting(nights: int, seed: int) -> tuple[float, int]:
    """A year with a hidden loss of 0.1% a night; -> the worst champion's true change, and how many there were."""
    line = Line(World(random=np.random.default_rng(seed)))
    promoted = sum(line.night(0.001) for _ in range(nights))
    return math.expm1(max(level for level, _ in line.champions)), promoted


def honest(lines: int, nights: int, seed_sd: float) -> float:
    """The share of nights without loss that are refused."""
    refused = 0
    for seed in range(lines):
        line = Line(World(seed_sd=seed_sd, random=np.random.default_rng(1000 + seed)))
        refused += sum(not line.night(0.0) for _ in range(nights))
    return refused / (lines * nights)


def steps(count: int = 10) -> int:
    """How many of so many models, each 1.9% worse than the last champion, pass."""
    line = Line(World())
    return sum(line.night(math.log1p(STEP)) for _ in range(count))


def coverage_table(repetitions: int) -> tuple[str, float]:
    """Coverage by sizes, noise and number of documents; -> the table, and the lowest coverage."""
    lines = [
        "| sizes | noise | " + " | ".join(f"n = {n}" for n in DOCUMENTS) + " |",
        "|---" * (2 + len(DOCUMENTS)) + "|",
    ]
    lowest = 1.0
    for sizes in SIZES:
        for noise in NOISES:
            found = [covered(sizes, noise, n, repetitions) for n in DOCUMENTS]
            lowest = min(lowest, *found)
            lines.append(f"| {sizes} | {noise} | " + " | ".join(f"{share:.3f}" for share in found) + " |")
    return "\n".join(lines), lowest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    options = parser.parse_args(arguments)
    table, lowest = coverage_table(options.repetitions)
    print(f"Coverage of 95% intervals, {options.repetitions} repetitions each:\n\n{table}\n")
    world, gate = World(), Requirements()
    print(
        f"Nights: {world.documents} documents, which count as {effective(world.size):.0f} of equal size; noise of a "
        f"document {world.document_sd:.1%}, of a warm night {NIGHT_SD:.1%}, of a seed {gate.seed_sd:.1%}; margin "
        f"{gate.tolerance:.1%}.\n"
    )
    years = [drifting(options.nights, seed) for seed in range(3)]
    print(f"a year with a hidden loss of 0.1% a night ends at {', '.join(f'{end:+.2%}' for end, _ in years)} "
          f"({', '.join(str(promoted) for _, promoted in years)} nights promoted)")  # fmt: skip
    warm, cold = honest(30, 60, NIGHT_SD), honest(30, 60, gate.seed_sd)
    print(f"refused of 1,800 warm nights without loss: {warm:.2%}; of 1,800 trainings with other seeds: {cold:.2%}")
    passed = steps()
    print(f"of ten models, each {STEP:.1%} worse than the last champion, {passed} pass")
    worst = max(end for end, _ in years)
    missed = lowest < COVERAGE or worst > WORST_YEAR or max(warm, cold) > REFUSED or passed == 10
    return int(options.check and missed)


if __name__ == "__main__":
    sys.exit(main())
