"""Chaos: fifty builds of a tiny recipe that are killed, run out of disk, or race a second build on the same store.

    python -m benchmarks.chaos [--builds 50] [--seed 1] [--check]

Each build has a store of its own and is started again until it succeeds. Then its artifacts are compared with those of
an undisturbed build, and every file of the store is checked against its manifest.

A kill is SIGKILL to the process group at a random moment: the build, its embedded server and its trainer. A full disk
is a small tmpfs, which needs root; without it these builds are killed instead. A race is a second build on the same
store, whose first one is killed. Every tenth build is the command `qalam build`, with Prefect embedded; the others run
the library's `build`, without Prefect.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from qalam_core.files import sha256_file
from qalam_core.recipe import Recipe, to_toml
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe

LIBRARY = """
import sys
from pathlib import Path
from qalam_core import QalamError, Recipe, Store, build
try:
    build(Recipe.load(Path(sys.argv[1])), Store(Path(sys.argv[2])))
except QalamError as error:
    sys.exit(f"one line: {error}")
"""
COMMAND = """
import sys
from al_qalam.flows.cli.main import main
sys.argv = ["qalam", "build", sys.argv[1], "--store", sys.argv[2]]
main()
"""
FAULTS = ("damaged artifacts", "digests that differ", "champions lost", "build failed beside another one", "traceback")
FAULTS_EACH = 2
"""Faults injected into each build before it is left to finish."""


def start(recipe: Path, store: Path, command: bool) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "QALAM_"))}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND if command else LIBRARY, str(recipe), str(store)], start_new_session=True,
        env={**environment, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def digests(store: Path) -> dict[str, str]:
    """What two builds of one recipe must share: weights, shards, and each file of the package."""
    files = [*store.glob("artifacts/train/*/model.safetensors"), *store.glob("artifacts/tokenize/*/*.arrow")]
    files += [path for path in store.glob("runs/*/model/*") if path.is_file()] + list(
        store.glob("runs/*/tokenizer.json")
    )
    return {path.relative_to(store).as_posix(): sha256_file(path) for path in files if ".partial" not in str(path)}


def damaged(store: Path) -> int:
    """Artifacts whose files differ from their manifest, and those that a build found so and set aside."""
    count = len([path for path in store.glob("artifacts/*/*") if ".damaged-" in path.name])
    for manifest in store.glob("artifacts/*/*/manifest.json"):
        home = manifest.parent
        if "." in home.name:
            continue
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        count += any(sha256_file(home / name) != entry["sha256"] for name, entry in files.items())
    return count


class Disk:
    """A small tmpfs for one store, whose size can be changed."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], capture_output=True, check=False
        )
        self.mounted = done.returncode == 0

    def size(self, text: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={text}", str(self.path)], check=True)

    def remove(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)


def disturb(
    recipe: Path, store: Path, command: bool, usual: float, disk: Disk | None, dice: random.Random
) -> Counter[str]:
    """Start a build, inject a fault, do so again, then let it finish; -> how often each thing happened."""
    happened: Counter[str] = Counter()
    for _ in range(FAULTS_EACH):
        fault = dice.choice(["kill", "kill", "race"] if disk is None else ["kill", "full", "full"])
        if fault == "full" and disk is not None and disk.mounted:
            used = shutil.disk_usage(disk.path).used
            disk.size(str(used + dice.randrange(4096, 1 << 20)))
        builds = [start(recipe, store, command)]
        if fault == "race":
            builds.append(start(recipe, store, False))
        if fault == "full" and disk is not None and disk.mounted:
            (one,) = builds
            errors = one.communicate(timeout=300)[1]
            if one.returncode and "one line: store" not in errors and "no space left" not in errors:
                happened["traceback"] += 1
                print(errors, file=sys.stderr)
            disk.size("64m")
        else:
            time.sleep(dice.uniform(0.2, 1.1) * usual)
            kill(builds[0])
            for other in builds[1:]:
                other.communicate(timeout=300)
                happened["build failed beside another one"] += other.returncode != 0
        happened[fault] += 1
    last = start(recipe, store, command)
    errors = last.communicate(timeout=600)[1]
    happened["succeeded"] += last.returncode == 0
    if last.returncode:
        print(errors, file=sys.stderr)
    return happened


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--builds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit 1 unless every build succeeds and nothing differs")
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="qalam-chaos-") as folder:
        home = Path(folder)
        corpus = home / "stories.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in sentences(400))
        corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
        recipe: Recipe = tiny_recipe(corpus, train={"steps": 400})
        file = home / "tiny.toml"
        file.write_text(to_toml(recipe), encoding="utf-8")
        usual = {}
        for command in (False, True):  # undisturbed: the reference, and how long one takes
            since = time.monotonic()
            calm = start(file, home / f"calm-{command}", command)
            assert calm.communicate()[1] is not None and calm.returncode == 0
            usual[command] = time.monotonic() - since
        reference = digests(home / "calm-False")
        totals["digests that differ"] += digests(home / "calm-True") != reference
        since = time.monotonic()
        for number in range(arguments.builds):
            command = number % 10 == 9
            disk = Disk(home / f"disk-{number}") if number % 3 == 2 and not command else None
            store = (disk.path if disk else home) / f"store-{number}"
            totals += disturb(file, store, command, usual[command], disk, dice)
            totals["damaged artifacts"] += damaged(store)
            totals["digests that differ"] += digests(store) != reference
            totals["champions lost"] += Runs(Store(store)).champion("tiny") is None
            print(f"\r{number + 1} of {arguments.builds} builds, {dict(totals)}", end="", file=sys.stderr, flush=True)
            if disk:
                disk.remove()
            else:
                shutil.rmtree(store)
        print(file=sys.stderr)
        seconds = time.monotonic() - since
    kills, full, races = totals["kill"], totals["full"], totals["race"]
    print("| | |\n|---|---|")
    print(f"| builds, each disturbed {FAULTS_EACH} times, then left to finish | {arguments.builds} |")
    print(f"| kill -9, disk full, kill -9 beside another build | {kills}, {full}, {races} |")
    print(f"| builds that succeeded | {totals['succeeded']} |")
    for name in FAULTS:
        print(f"| {name} | {totals[name]} |")
    print(f"| minutes, for {arguments.builds + kills + full + races} starts | {seconds / 60:.1f} |")
    bad = sum(totals[name] for name in FAULTS)
    return int(arguments.check and (bad > 0 or totals["succeeded"] != arguments.builds))


if __name__ == "__main__":
    sys.exit(main())
