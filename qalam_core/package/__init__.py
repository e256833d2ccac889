"""The product: a model as a folder of Python source that can be read, edited, compared and loaded safely.
`write` makes one; `read` and `verify` take one without executing it. docs/package_format.md describes the format.
"""

from qalam_core.package.inference import generate
from qalam_core.package.read import Package, changes, read, read_tensor_rows, verify
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.package.write import replace_card, write

__all__ = [
    "ModelConfig", "Package", "Vocabulary", "changes", "generate", "read", "read_tensor_rows", "replace_card", "verify",
    "write",
]  # fmt: skip
