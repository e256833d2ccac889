"""The errors that a user can cause. Each message is one line that names the thing, the place and the cure.
Gives exception classes, and the hint for a misspelt name. It does not know terminals or exit codes.

    QalamError
    +-- RecipeError     a recipe value is unknown, of the wrong type, or contradicts another
    +-- CorpusError     a source cannot be read, or holds no usable text
    +-- TrainingError   training cannot start, diverged, or was stopped (and says how to go on)
    +-- PackageError    a folder is not a model package, or not an honest one
    +-- StoreError      the store cannot be written, or an artifact or run is missing or damaged
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = ["CorpusError", "PackageError", "QalamError", "RecipeError", "StoreError", "TrainingError", "did_you_mean"]


class QalamError(Exception):
    """Base of everything a user can cause and cure; `str(error)` is the one line to show."""


class RecipeError(QalamError):
    """A recipe value is unknown, of the wrong type, or contradicts another."""


class CorpusError(QalamError):
    """A source cannot be read, or holds no usable text."""


class TrainingError(QalamError):
    """Training cannot start, diverged, or was stopped."""


class PackageError(QalamError):
    """A folder is not a model package, or not an honest one."""


class StoreError(QalamError):
    """The store cannot be written, or something in it is missing or damaged."""


def did_you_mean(name: str, known: Sequence[str], otherwise: str) -> str:
    """The end of a message about an unknown name: the nearest of `known`, or else `otherwise`."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'did you mean "{found[0]}"?' if found else otherwise
