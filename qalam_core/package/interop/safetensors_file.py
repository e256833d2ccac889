"""Exports weights to safetensors files and imports them, with the words and configuration of another package."""

from __future__ import annotations

from pathlib import Path

from qalam_core.package.interop.common import card, provenance, read_tensors, save_tensors, without_tied_head
from qalam_core.package.read import read
from qalam_core.package.write import write


def export_safetensors(package: Path, out: Path) -> None:
    """Write the weights of a package to the safetensors file `out`, as float32 under their own names."""
    save_tensors(read(package).weights, out)


def import_safetensors(file: Path, package: Path, out: Path, *, dtype: str = "f32") -> list[str]:
    """Write a package with the tensors of `file` and the config and words of `package` into `out`; -> remarks.

    A tied model has one matrix for embedding and head, under either name or both.
    """
    base = read(package)
    weights = read_tensors([file])
    if base.config.tied:
        weights = without_tied_head(weights, file.name)
    sources = provenance([file])
    text = card(
        "Its weights come from a safetensors file, its config and words from a package whose vocab.py has sha256 "
        f"`{base.manifest['files']['vocab.py']}`.",
        sources,
    )
    write(
        out, config=base.config, vocabulary=base.vocabulary, weights=weights, card=text,
        provenance=sources, dtype=dtype,
    )  # fmt: skip
    return ["the card and the provenance of the package that provided the words were not copied"]
