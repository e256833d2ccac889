"""Plain import of a package by a fresh interpreter that leaves its caches, whatever the environment says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def import_it(folder: Path, module: str = "") -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    script = f"import {module or folder.name}"
    subprocess.run([sys.executable, "-c", script], cwd=folder.parent, env=environment, check=True)
