"""The product: a model as a folder of Python source that can be read, edited, compared and loaded safely.
Takes plain values and gives files (`write`), or files and gives plain values (`read`, `verify`).
It does not know how a model is trained; the format is described in docs/package_format.md.
"""

from qalam_core.package.inference import config_of, generate
from qalam_core.package.read import Package, read, read_tensor, read_tensor_row, read_tensor_rows, verify
from qalam_core.package.write import FORMAT, Vocabulary, code_digests, replace_card, write

__all__ = [
    "FORMAT", "Package", "Vocabulary", "code_digests", "config_of", "generate", "read", "read_tensor",
    "read_tensor_row", "read_tensor_rows", "replace_card", "verify", "write",
]  # fmt: skip
