"""Progress callbacks: how long work says how far it is.
Gives a type, and the callback that does nothing. It does not know who listens.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

Progress = Callable[[int, int], None]
"""Called as (done, total), in the unit that the work counts in; a total of 0 means "not known yet"."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""
