"""What orchestration costs: the same cached build, and the same mapped shards, by Prefect and by plain functions.

    python -m benchmarks.bench_flow [--check]

The demo corpus, 50 training steps. Each figure of a build is a process of its own, from its start to its end.
Targets: a fully cached build takes at most 15 s without a server and 6 s with one; mapping over 200 token shards
adds at most 10 s to the work itself.
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

EMBEDDED_SECONDS, SERVER_SECONDS, MAPPED_SECONDS = 15.0, 6.0, 10.0
SHARDS = 200
PLAIN = """
import sys
from pathlib import Path
from qalam_core.pipeline import build as stages
from qalam_core.recipe import Recipe
from qalam_core.store import Store
recipe = Recipe.load(Path(sys.argv[1]), ["train.steps=50", "gate.beat_unigram=0"])
assert stages.build(recipe, Store(Path(sys.argv[2]))).cached
"""
# a corpus of many small shards, tokenized by a loop and by a mapped task; prints both times
MAPPED = """
import shutil, sys, time
from pathlib import Path
import pyarrow as pa
from prefect import flow, unmapped
from qalam_core.pipeline import build as stages
from qalam_core.recipe import Recipe
from qalam_core.store import Store
from al_qalam.tasks import stages as tasks
recipe, store, count = Recipe.load(Path(sys.argv[1])), Store(Path(sys.argv[2])), int(sys.argv[3])
documents = [stages.ingest(store, file) for file in stages.resolve(recipe.corpus)]
corpus = stages.prepare(store, recipe, documents)
tokenizer = stages.vocab(store, recipe, corpus)
table = pa.ipc.open_file(corpus.path / "train-00000.arrow").read_all()

def cut(out):
    size = table.num_rows // count
    for number in range(count):
        part = table.slice(number * size, size).combine_chunks()
        with pa.ipc.new_file(out / f"train-{number:05d}.arrow", table.schema) as writer:
            writer.write_table(part)
    return {}

def many(name):
    return store.build("prepare", 0, {"cut": name}, {}, cut)

@flow(persist_result=False)
def mapped(corpus):
    names = stages.shards(corpus)
    return tasks.tokenize.map(unmapped(str(store.root)), unmapped(corpus), names, unmapped(tokenizer)).result()

corpus = many("once")
names = stages.shards(corpus)
since = time.monotonic()
for name in names:
    stages.tokenize(store, corpus, name, tokenizer)
plain = time.monotonic() - since
shutil.rmtree(store.root / "artifacts" / "tokenize")
since = time.monotonic()
assert len(mapped(corpus)) == count
print(plain, time.monotonic() - since)
"""


def output(*command: str, api: str = "") -> tuple[float, str]:
    """Run Python on `command` -> (seconds, standard output)."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    if api:
        environment["PREFECT_API_URL"] = api
    since = time.monotonic()
    done = subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True, text=True)
    return time.monotonic() - since, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    check = parser.parse_args().check
    recipe = str(Path(__file__).parent.parent / "deployments" / "recipes" / "demo.toml")
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder) / "prefect") as api:
        store = str(Path(folder) / "store")
        build = (
            "-c", "from al_qalam.flows.cli.main import main; main()", "build", recipe, "--store", store,
            "--set", "train.steps=50", "--set", "gate.beat_unigram=0",
        )  # fmt: skip
        first, _ = output(*build)
        embedded = min(output(*build)[0] for _ in range(3))
        served = min(output(*build, api=api)[0] for _ in range(3))
        plain = min(output("-c", PLAIN, recipe, store)[0] for _ in range(3))
        alone, mapped = map(float, output("-c", MAPPED, recipe, store, str(SHARDS), api=api)[1].split())
    added = mapped - alone
    print("| | seconds | target | times the plain functions |\n|---|---|---|---|")
    print(f"| first build, `qalam build`, 50 steps | {first:.1f} | | |")
    print(f"| cached, plain functions | {plain:.1f} | | 1 |")
    print(f"| cached, `qalam build`, no server | {embedded:.1f} | {EMBEDDED_SECONDS:.0f} | {embedded / plain:.1f} |")
    print(f"| cached, `qalam build`, a server | {served:.1f} | {SERVER_SECONDS:.0f} | {served / plain:.1f} |")
    print(f"| {SHARDS} token shards, plain functions | {alone:.1f} | | 1 |")
    print(
        f"| {SHARDS} token shards, a mapped task | {mapped:.1f} | {alone + MAPPED_SECONDS:.1f} | {mapped / alone:.1f} |"
    )
    missed = embedded > EMBEDDED_SECONDS or served > SERVER_SECONDS or added > MAPPED_SECONDS
    return int(check and missed)


if __name__ == "__main__":
    sys.exit(main())
