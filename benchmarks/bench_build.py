"""What orchestration costs: a cached build by `qalam build` beside the same build by plain functions.

    python -m benchmarks.bench_build [--check]

The demo corpus, 50 training steps. Each figure is a process of its own, from its start to its end.
Target: a fully cached build with embedded Prefect takes at most 20 s.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET_SECONDS = 20.0
PLAIN = """
import sys
from pathlib import Path
from qalam_core import stages
from qalam_core.recipe import Recipe
from qalam_core.store import Store
recipe = Recipe.load(Path(sys.argv[1]), ["train.steps=50", "gate.beat_unigram=0"])
assert stages.build(recipe, Store(Path(sys.argv[2]))).cached
"""


def seconds(*command: str) -> float:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    since = time.monotonic()
    subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    return time.monotonic() - since


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the target is missed")
    check = parser.parse_args().check
    recipe = str(Path(__file__).parent.parent / "deployments" / "recipes" / "demo.toml")
    with tempfile.TemporaryDirectory() as store:
        flow = (
            "-c", "from flows.cli import main; main()", "build", recipe, "--store", store,
            "--set", "train.steps=50", "--set", "gate.beat_unigram=0",
        )  # fmt: skip
        first = seconds(*flow)
        cached = min(seconds(*flow) for _ in range(3))
        plain = min(seconds("-c", PLAIN, recipe, store) for _ in range(3))
    print(f"{'first build, 50 steps':<44}{first:8.1f} s")
    print(f"{'cached, qalam build (embedded Prefect)':<44}{cached:8.1f} s   best of 3; target {TARGET_SECONDS:.0f} s")
    print(f"{'cached, stages.build (no Prefect)':<44}{plain:8.1f} s   best of 3; {cached / plain:.1f}x less")
    return int(check and cached > TARGET_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
