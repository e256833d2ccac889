"""Tests, in folders that mirror qalam_core and flows."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Of the repository."""

GOLDEN = ROOT / "tests" / "golden"
