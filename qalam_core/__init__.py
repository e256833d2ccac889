"""Al-Qalam: an Arabic corpus in, a language model whose weights are Python source out.
The names below are the original's; they are imported when first used, so that `import qalam_core` is
quick and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qalam_core.original import PureCodeTrainer, PureDynamicTransformer
    from qalam_core.tokens.tokenizer import ArabicTokenizer

__all__ = ["ArabicTokenizer", "PureCodeTrainer", "PureDynamicTransformer"]

_HOMES = {"ArabicTokenizer": "tokens.tokenizer", "PureCodeTrainer": "original", "PureDynamicTransformer": "original"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"qalam_core.{_HOMES[name]}"), name)
