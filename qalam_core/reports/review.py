"""The page of a review: one file without references to others, which needs no script."""

from __future__ import annotations

from qalam_core.reports.render import render
from qalam_core.review.results import DocumentChange, PieceChange
from qalam_core.review.summary import SECTIONS, Review

OPEN_ROWS = 12
"""Longer tables are closed at first."""

_LEVELS = (0.25, 1.0, 3.0)  # nats from which a change is drawn thicker


def review_page(review: Review) -> str:
    """The page of a review."""
    return render(
        "review.html", review=review, sections=SECTIONS, open_rows=OPEN_ROWS, shade=_shade, goes_on=_goes_on,
        state="" if review.clean else "refused" if review.gate == "refused" else "waits",
    )  # fmt: skip


def _shade(piece: PieceChange) -> str:
    """The class of a piece: "dearer-2" of a change by 1 to 3 nats, "" below the first level."""
    level = sum(bound <= abs(piece.change) for bound in _LEVELS)
    return f"{'dearer' if piece.change > 0 else 'cheaper'}-{level}" if level else ""


def _goes_on(document: DocumentChange) -> bool:
    """Whether the document goes on after its excerpt."""
    return document.start + sum(len(piece.text) for piece in document.pieces) < document.characters
