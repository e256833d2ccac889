"""The errors that a user can cause. Each message is one line: what is wrong, where, and how to fix it.

QalamError
+-- RecipeError
+-- CorpusError
+-- TrainingError
+-- PackageError
+-- StoreError
    +-- DamagedError
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class QalamError(Exception):
    """Base class of errors that a user can cause and fix; `str(error)` is the message to show."""


class RecipeError(QalamError):
    """A recipe value is unknown, of the wrong type, or contradicts another."""


class CorpusError(QalamError):
    """A source cannot be read, or has no usable text."""


class TrainingError(QalamError):
    """Training cannot start, diverged, or was stopped; the message says how to continue."""


class PackageError(QalamError):
    """A folder is not a model package, or is a damaged or forged one."""


class StoreError(QalamError):
    """The store cannot be read or written, or what is asked of it is not possible."""


class DamagedError(StoreError):
    """An artifact or a run is missing, or has not the bytes that were written. Never because a disk cannot be read."""


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """The end of a message about an unknown name: the nearest of `known`, else `otherwise`."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'did you mean "{found[0]}"?' if found else otherwise
