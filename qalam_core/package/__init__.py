"""A model as a folder of Python source that can be read, edited, compared and loaded safely.
`write` creates one; `read` and `verify` never execute one. docs/package_format.md specifies the format.
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
