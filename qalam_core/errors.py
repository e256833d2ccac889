"""The errors a user can cause. Each message is one line that names the thing, the place and the cure.
Takes nothing, gives exception classes; knows nothing of terminals or exit codes.

    QalamError
    +-- RecipeError     a recipe value is unknown, of the wrong type, or contradicts another
    +-- CorpusError     a source cannot be read, or holds no usable text
    +-- TrainingError   training cannot start, diverged, or was stopped (and says how to go on)
    +-- PackageError    a folder is not a model package, or not an honest one
    +-- StoreError      the store cannot be written, or an artifact or run is missing or damaged
"""

__all__ = ["CorpusError", "PackageError", "QalamError", "RecipeError", "StoreError", "TrainingError"]


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
