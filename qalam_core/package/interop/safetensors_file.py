"""Packages to safetensors files and back: the weights under their own names.
Takes a package or a safetensors file, gives the other. A safetensors file holds neither words nor a configuration; a
package lends them.
"""

from __future__ import annotations

from pathlib import Path

from qalam_core.package.interop.common import card, drop_tied_head, provenance, read_tensors, save_tensors
from qalam_core.package.read import read
from qalam_core.package.write import write

__all__ = ["export_safetensors", "import_safetensors"]


def export_safetensors(package: Path, out: Path) -> None:
    """The weights of a package, as float32 under their own names, as the safetensors file `out`."""
    save_tensors(read(package).weights, out)


def import_safetensors(file: Path, package: Path, out: Path, *, dtype: str = "f32") -> list[str]:
    """Write into `out` a package with the tensors of `file` and the config and words of `package`.

    A head that a tied model stores beside its embedding must equal it, and is left out. Returns remarks.
    """
    base = read(package)
    weights = read_tensors([file])
    if base.config.tied and "lm_head.weight" in weights:
        weights = drop_tied_head(weights, file.name)
    text = card(
        "Its weights come from a safetensors file, its config and words from a package whose vocab.py has sha256 "
        f"`{base.manifest['files']['vocab.py']}`.",
        [file],
    )
    write(
        out,
        config=base.config,
        vocabulary=base.vocabulary,
        weights=weights,
        card=text,
        provenance=provenance([file]),
        dtype=dtype,
    )
    return ["the card and the provenance of the package that lent its words were not taken over"]
