"""The same model in another storage type.
Takes a package and the name of a type, gives a new package.
It does not know what the rounding costs; evaluation measures that.
"""

from __future__ import annotations

from pathlib import Path

from qalam_core.package.read import read
from qalam_core.package.write import write

__all__ = ["convert"]


def convert(folder: Path, out: Path, dtype: str) -> None:
    """Write the package in `folder` to `out` with its matrices stored as `dtype`; the card says so."""
    package = read(folder)
    card = (Path(folder) / "MODEL_CARD.md").read_text(encoding="utf-8")
    write(
        Path(out), config=package.config, vocabulary=package.vocabulary, weights=package.weights,
        card=f"{card}\nStored again as {dtype}, from a package stored as {package.manifest['dtype']}.\n",
        provenance=package.manifest["provenance"], dtype=dtype,
    )  # fmt: skip
