"""A store on object storage: what a build costs in requests, bytes and seconds; and chaos between two machines.

    python -m benchmarks.bench_object_store [--cost] [--chaos] [--builds 50] [--seed 1] [--check]

Needs the extra `test`: the object storage is SeaweedFS, a real S3 server, on this machine. A machine is a folder of
copies (QALAM_CACHE) and processes of its own; machines share nothing but the server.

--cost   the demo recipe, trained for 20 steps: built first, again on that machine, and on another one; in a folder
         beside it. Requests are counted by a proxy before the server. Target: where all is cached, at most 3 s more
         than in a folder.
--chaos  builds of a tiny recipe on two machines at once, through a proxy that spoils every 20th request. Of each pair
         one build is killed (SIGKILL, with its trainer), in every fifth round also the server, and then started again.
         Both are repeated until they succeed. Targets: no damaged artifact, no digest that differs from that of a build
         in a folder, and all promotions in the history.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from benchmarks.chaos import LIBRARY
from benchmarks.targets import judged
from qalam_core.files import sha256_bytes, sha256_file
from qalam_core.object_store import ObjectStore
from qalam_core.objects import Objects
from qalam_core.recipe import Recipe, to_toml
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import sentences, tiny_recipe
from tests.object_storage import Faulty, Server, credentials, s3_server

URL = "s3://bench/store"
RECIPE = Path(__file__).parents[1] / "deployments" / "recipes" / "demo.toml"
CODE = LIBRARY.replace("Store(Path(sys.argv[2]))", "store_at(sys.argv[2])").replace(
    "from qalam_core import", "from qalam_core.object_store import store_at\nfrom qalam_core import"
)


def start(recipe: Path, place: str, machine: Path, port: int) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "QALAM_", "AWS_"))}
    environment = {**kept, **credentials(port), "QALAM_CACHE": str(machine), "QALAM_LEASE_SECONDS": "3"}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(recipe), place], start_new_session=True,
        env={**environment, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """-> the last line of what it says, "" when it succeeded."""
    said = process.communicate()[1].strip().splitlines()
    return "" if process.returncode == 0 else (said or ["killed"])[-1]


def cost(folder: Path, server: Server) -> list[tuple[str, float, str, float]]:
    recipe = folder / "demo.toml"
    recipe.write_text(to_toml(Recipe.load(RECIPE, ["train.steps=20"])), encoding="utf-8")
    seconds: dict[str, float] = {}
    print(f"{'':34}{'seconds':>9}{'requests':>10}{'MB up':>8}{'MB down':>9}  by method")
    for name, place, machine in (
        ("in a folder", str(folder / "store"), "x"), ("in a folder, cached", str(folder / "store"), "x"),
        ("s3://", URL, "one"), ("s3://, cached", URL, "one"), ("s3://, on another machine", URL, "two"),
        ("s3://, cached there", URL, "two"),
    ):  # fmt: skip
        proxy = Faulty(server.port, sys.maxsize)
        since = time.perf_counter()
        if problem := finish(start(recipe, place, folder / machine, proxy.port)):
            raise SystemExit(f"{name}: {problem}")
        seconds[name] = time.perf_counter() - since
        proxy.close()
        sums = f"{proxy.requests.total():10}{proxy.bytes['up'] / 1e6:8.1f}{proxy.bytes['down'] / 1e6:9.1f}"
        print(f"{name:34}{seconds[name]:9.1f}{sums}  {dict(proxy.requests)}", flush=True)
    more = seconds["s3://, cached"] - seconds["in a folder, cached"]
    return [("seconds more than in a folder, all cached", more, "at most", 3.0)]


def chaos(folder: Path, server: Server, builds: int, dice: random.Random) -> list[tuple[str, float, str, float]]:
    corpus = folder / "texts.jsonl"
    rows = (json.dumps({"text": text}, ensure_ascii=False) for text in sentences(400))
    corpus.write_text("\n".join(rows), encoding="utf-8")
    proxy = Faulty(server.port, 20)
    happened, traces, usual = Counter[str](), 0, 8.0
    recipes = []
    for number in range(builds // 2):
        recipe = folder / f"{number}.toml"
        recipes.append(tiny_recipe(corpus).model_copy(update={"name": f"name{number}", "seed": number}))
        recipe.write_text(to_toml(recipes[-1]), encoding="utf-8")
        machines = [folder / "one", folder / "two"]
        running = [start(recipe, URL, machine, proxy.port) for machine in machines]
        time.sleep(dice.uniform(0.2, 1.0) * usual)
        victim = dice.randrange(2)
        if running[victim].poll() is None:
            happened["builds killed"] += 1
            with suppress(ProcessLookupError):
                os.killpg(running[victim].pid, signal.SIGKILL)
        if number % 5 == 4:
            happened["servers killed"] += 1
            server.kill()
            time.sleep(1)
            server.start()
        for machine, process in zip(machines, running, strict=True):
            since = time.perf_counter()
            while problem := finish(process):
                happened["builds repeated"] += 1
                traces += "one line:" not in problem and problem != "killed" and process.returncode > 0
                process = start(recipe, URL, machine, proxy.port)
            usual = min(usual, max(2.0, time.perf_counter() - since))
        print(f"  {number + 1} of {builds // 2} pairs, {dict(happened)}", file=sys.stderr, flush=True)
    happened["requests spoiled"] = proxy.spoiled.total() - proxy.spoiled[""]
    proxy.close()
    print(f"{builds} builds: {dict(happened)}\n")
    os.environ["QALAM_CACHE"] = str(folder / "three")
    there, here = ObjectStore(URL), Store(folder / "undisturbed")
    differ = lost = 0
    for number, recipe_of in enumerate(recipes):
        if problem := finish(start(folder / f"{number}.toml", str(here.root), folder / "x", 9)):
            raise SystemExit(f"undisturbed: {problem}")
        (run,) = (one.run for one in Runs(here).promotions(recipe_of.name))
        lost += [one.run for one in Runs(there).promotions(recipe_of.name)] != [run]
        for name in ("model", "tokenizer.json"):
            near, far = (Runs(store).folder(run) / name for store in (here, there))
            files = sorted(path.name for path in near.iterdir()) if near.is_dir() else [""]
            differ += sum(sha256_file(near / each) != sha256_file(far / each) for each in files)
    return [
        ("damaged artifacts", damaged(Objects(URL)), "at most", 0), ("digests that differ", differ, "at most", 0),
        ("promotions lost, or twice", lost, "at most", 0), ("tracebacks", traces, "at most", 0),
        ("builds killed", happened["builds killed"], "at least", builds // 4),
    ]  # fmt: skip


def damaged(objects: Objects) -> int:
    """Artifacts one of whose objects is missing, or differs from the manifest."""
    count = 0
    for name in (
        name for name in objects.below("artifacts") if name.endswith("/manifest.json") and name.count("/") == 3
    ):
        content, _ = objects.read(name)
        place = f"{name.rpartition('/')[0]}/{sha256_bytes(content)[:16]}"
        for file, entry in json.loads(content)["files"].items():
            try:
                count += sha256_bytes(objects.read(f"{place}/{file}")[0]) != entry["sha256"]
            except FileNotFoundError:
                count += 1
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("cost", "chaos", "check"):
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--builds", type=int, default=50, help="of --chaos")
    parser.add_argument("--seed", type=int, default=1, help="of --chaos")
    asked = parser.parse_args()
    targets: list[tuple[str, float, str, float]] = []
    for name in ("cost", "chaos"):
        if getattr(asked, name) or not (asked.cost or asked.chaos):
            with tempfile.TemporaryDirectory() as made, s3_server(Path(made) / "s3") as server:
                folder = Path(made)
                os.environ |= credentials(server.port)
                Objects(URL).write("made", b"")  # this server makes a bucket with its first object
                targets += (
                    cost(folder, server)
                    if name == "cost"
                    else chaos(folder, server, asked.builds, random.Random(asked.seed))
                )
    return judged(targets, asked.check)


if __name__ == "__main__":
    sys.exit(main())
