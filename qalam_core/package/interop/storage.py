"""The same model in another storage type."""

from __future__ import annotations

from pathlib import Path

from qalam_core.package.read import read
from qalam_core.package.write import write


def convert(folder: Path, out: Path, dtype: str) -> None:
    """Write the package in `folder` to `out` with its matrices stored as `dtype`, and record that in the card."""
    package = read(folder)
    card = (Path(folder) / "MODEL_CARD.md").read_text(encoding="utf-8")
    write(
        Path(out), config=package.config, vocabulary=package.vocabulary, weights=package.weights,
        card=f"{card}\nStored again as {dtype}, from a package stored as {package.manifest['dtype']}.\n",
        provenance=package.manifest["provenance"], dtype=dtype,
    )  # fmt: skip
