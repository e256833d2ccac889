"""What orchestration costs: builds in which every stage is reused, and a mapped stage, with and without Prefect.

    python -m benchmarks.bench_flow [--shards 200] [--rounds 3] [--check]

The demo corpus, 50 training steps. Each time of a build is that of a whole process, from its start to its exit; the
best of a few rounds. Targets: `qalam build RECIPE` in which every stage is reused takes at most 2 s without a server,
where Prefect is not started, and 6 s with one; mapping over 200 token shards adds at most 10 s to the work itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.flows.processes import prefect_server

REUSED_SECONDS, SERVED_SECONDS, MAPPED_SECONDS = 2.0, 6.0, 10.0
SETTINGS = ("train.steps=50", "gate.beat_unigram=0")
QALAM = "from al_qalam.flows.cli.main import main; main()"
LIBRARY = """
import sys
from pathlib import Path
from qalam_core import Recipe, Store, build
assert build(Recipe.load(Path(sys.argv[1]), sys.argv[3:]), Store(Path(sys.argv[2]))).cached
"""
# tokenizes the demo corpus, cut into many small shards, by a loop and by a mapped task; prints the seconds of both
MAPPED = """
import shutil, sys, time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from prefect import flow

from al_qalam.tasks.executor import AsTasks
from al_qalam.tasks.runners import workers
from qalam_core.corpus.prepare import CorpusFacts
from qalam_core.corpus.sources import resolve
from qalam_core.pipeline.build import InPlace, ingested, tokenized
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.recipe import Recipe
from qalam_core.store import Identity, Store

recipe, store, count = Recipe.load(Path(sys.argv[1])), Store(Path(sys.argv[2])), int(sys.argv[3])
found = tokenized(recipe, ingested(recipe, resolve(recipe.corpus.sources), InPlace(store)), InPlace(store))
table = pa.ipc.open_file(found.corpus.path / "train-00000.arrow").read_all()


@dataclass(frozen=True)
class Cut:
    resumable = ()

    @property
    def identity(self):
        return Identity(stage="prepare", version=0, settings={"shards": count}, inputs={})

    def run(self, out, progress):
        size = table.num_rows // count
        for number in range(count):
            with pa.ipc.new_file(out / f"train-{number:05d}.arrow", table.schema) as writer:
                writer.write_table(table.slice(number * size, size).combine_chunks())
        return found.corpus.facts(CorpusFacts)


@flow(persist_result=False)
def mapped(stages):
    with workers(recipe.runner) as pool:
        return AsTasks(str(store.root), pool, recipe).map(stages)


stages = Tokenize.all_of(store.build(Cut()), found.tokenizer)
since = time.monotonic()
InPlace(store).map(stages)
alone = time.monotonic() - since
shutil.rmtree(store.root / "artifacts" / "tokenize")
since = time.monotonic()
assert len(mapped(stages)) == count
print(alone, time.monotonic() - since)
"""


def output(*command: str, api: str = "") -> tuple[float, str]:
    """Run Python on `command` -> (seconds, standard output)."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    if api:
        environment["PREFECT_API_URL"] = api
    since = time.monotonic()
    done = subprocess.run([sys.executable, *command], env=environment, check=False, capture_output=True, text=True)
    seconds = time.monotonic() - since
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, done.stdout


def best(rounds: int, *command: str, api: str = "") -> float:
    """Least seconds of some runs."""
    return min(output(*command, api=api)[0] for _ in range(rounds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=200, help="of the mapped stage")
    parser.add_argument("--rounds", type=int, default=3, help="of each build")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    options = parser.parse_args()
    recipe = str(Path(__file__).parent.parent / "deployments" / "recipes" / "demo.toml")
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder) / "prefect") as api:
        store = str(Path(folder) / "store")
        changes = [argument for setting in SETTINGS for argument in ("--set", setting)]
        build = ("-c", QALAM, "build", recipe, "--store", store, *changes)
        first, _ = output(*build)
        reused = best(options.rounds, *build)
        served = best(options.rounds, *build, api=api)
        library = best(options.rounds, "-c", LIBRARY, recipe, store, *SETTINGS)
        alone, mapped = map(float, output("-c", MAPPED, recipe, store, str(options.shards), api=api)[1].split())
    print("| | seconds | target |\n|---|---|---|")
    print(f"| first build, `qalam build`, 50 steps | {first:.1f} | |")
    print(f"| everything reused, `qalam build`, no server | {reused:.2f} | {REUSED_SECONDS:.0f} |")
    print(f"| everything reused, `qalam build`, a server | {served:.2f} | {SERVED_SECONDS:.0f} |")
    print(f"| everything reused, `qalam_core.build` | {library:.2f} | |")
    print(f"| {options.shards} token shards, one after the other | {alone:.1f} | |")
    print(f"| {options.shards} token shards, a mapped task | {mapped:.1f} | {alone + MAPPED_SECONDS:.1f} |")
    missed = reused > REUSED_SECONDS or served > SERVED_SECONDS or mapped - alone > MAPPED_SECONDS
    return int(options.check and missed)


if __name__ == "__main__":
    sys.exit(main())
