"""Chaos: fifty builds of a tiny recipe while they are killed, their disk fills up, and rivals build the same.

Each build has a store, and is started again until it ends well; then its artifacts are compared with those of one
build that nobody disturbed, and every file of the store is checked against its manifest.

    python -m benchmarks.chaos [--builds 50] [--seed 1] [--check]

A kill is SIGKILL to the process group at a random moment: the build, its embedded server, its trainer. A full disk is
a small tmpfs, which needs root; without it these builds are killed instead. A rival is a second process on the same
store.
Every tenth build is the whole `qalam build`, with Prefect embedded; the others are its stages without Prefect.
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

from qalam_core.recipe import Recipe, to_toml
from qalam_core.store import Store, file_sha256
from tests.conftest import sentences, tiny_recipe

STAGES = """
import sys
from pathlib import Path
from qalam_core.pipeline import build as stages
from qalam_core.errors import QalamError
from qalam_core.recipe import Recipe
from qalam_core.store import Store
try:
    stages.build(Recipe.load(Path(sys.argv[1])), Store(Path(sys.argv[2])))
except QalamError as error:
    sys.exit(f"one line: {error}")
"""
WHOLE = """
import sys
from al_qalam.flows.cli.main import main
sys.argv = ["qalam", "build", sys.argv[1], "--store", sys.argv[2]]
main()
"""
FAULTS = ("damaged artifacts", "digests that differ", "champions lost", "rival failed", "traceback")
STRIKES = 2
"""How often one build is struck before it is left alone to finish."""


def start(recipe: Path, store: Path, whole: bool) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "QALAM_"))}
    return subprocess.Popen(
        [sys.executable, "-c", WHOLE if whole else STAGES, str(recipe), str(store)], start_new_session=True,
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
    return {path.relative_to(store).as_posix(): file_sha256(path) for path in files if ".partial" not in str(path)}


def damaged(store: Path) -> int:
    """Artifacts that stand in their place and are not what their manifest says, or were ever found so."""
    count = len([path for path in store.glob("artifacts/*/*") if ".damaged-" in path.name])
    for manifest in store.glob("artifacts/*/*/manifest.json"):
        home = manifest.parent
        if "." in home.name:
            continue
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        count += any(file_sha256(home / name) != entry["sha256"] for name, entry in files.items())
    return count


class Disk:
    """A small tmpfs for one store; `full` when no more fits."""

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


def torment(
    recipe: Path, store: Path, whole: bool, usual: float, disk: Disk | None, dice: random.Random
) -> Counter[str]:
    """Start the build again and again, strike it, and let it finish; -> what happened, by name."""
    happened: Counter[str] = Counter()
    for _ in range(STRIKES):
        strike = dice.choice(["kill", "kill", "rival"] if disk is None else ["kill", "full", "full"])
        if strike == "full" and disk is not None and disk.mounted:
            used = shutil.disk_usage(disk.path).used
            disk.size(str(used + dice.randrange(4096, 1 << 20)))
        builds = [start(recipe, store, whole)]
        if strike == "rival":
            builds.append(start(recipe, store, False))
        if strike == "full" and disk is not None and disk.mounted:
            (one,) = builds
            errors = one.communicate(timeout=300)[1]
            if one.returncode and "one line: store" not in errors and "no space left" not in errors:
                happened["traceback"] += 1
                print(errors, file=sys.stderr)
            disk.size("64m")
        else:
            time.sleep(dice.uniform(0.2, 1.1) * usual)
            kill(builds[0])
            for rival in builds[1:]:
                rival.communicate(timeout=300)
                happened["rival failed"] += rival.returncode != 0
        happened[strike] += 1
    last = start(recipe, store, whole)
    errors = last.communicate(timeout=600)[1]
    happened["survived"] += last.returncode == 0
    if last.returncode:
        print(errors, file=sys.stderr)
    return happened


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--builds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit with 1 unless all survive and nothing differs")
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
        for whole in (False, True):  # undisturbed: the reference, and how long one takes
            since = time.monotonic()
            calm = start(file, home / f"calm-{whole}", whole)
            assert calm.communicate()[1] is not None and calm.returncode == 0
            usual[whole] = time.monotonic() - since
        reference = digests(home / "calm-False")
        totals["digests that differ"] += digests(home / "calm-True") != reference
        since = time.monotonic()
        for number in range(arguments.builds):
            whole = number % 10 == 9
            disk = Disk(home / f"disk-{number}") if number % 3 == 2 and not whole else None
            store = (disk.path if disk else home) / f"store-{number}"
            totals += torment(file, store, whole, usual[whole], disk, dice)
            totals["damaged artifacts"] += damaged(store)
            totals["digests that differ"] += digests(store) != reference
            totals["champions lost"] += Store(store).champion("tiny") is None
            print(f"\r{number + 1} of {arguments.builds} builds, {dict(totals)}", end="", file=sys.stderr, flush=True)
            if disk:
                disk.remove()
            else:
                shutil.rmtree(store)
        print(file=sys.stderr)
        seconds = time.monotonic() - since
    strikes = totals["kill"] + totals["full"] + totals["rival"]
    print("| | |\n|---|---|")
    print(f"| builds, each struck {STRIKES} times, then left to finish | {arguments.builds} |")
    print(f"| strikes: kill -9, disk full, rival | {totals['kill']}, {totals['full']}, {totals['rival']} |")
    print(f"| builds that ended well | {totals['survived']} |")
    for name in FAULTS:
        print(f"| {name} | {totals[name]} |")
    print(f"| minutes, for {strikes + arguments.builds} starts | {seconds / 60:.1f} |")
    bad = sum(totals[name] for name in FAULTS)
    return int(arguments.check and (bad > 0 or totals["survived"] != arguments.builds))


if __name__ == "__main__":
    sys.exit(main())
