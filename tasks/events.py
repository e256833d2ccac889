"""Events: what a build reports to the server's automations, and that a corpus has new text.
Takes what happened, emits an event with plain values; without a server nothing is sent.
It does not know who is notified: the automations do (flows/serving/deploy.py).
"""

from __future__ import annotations

from prefect.events import emit_event
from prefect.settings import get_current_settings

from qalam_core.pipeline.publish import Published

__all__ = ["CORPUS_UPDATED", "GATE_REFUSED", "PROMOTED", "announce", "corpus_updated"]

CORPUS_UPDATED = "qalam.corpus.updated"
GATE_REFUSED = "qalam.gate.refused"
PROMOTED = "qalam.champion.promoted"


def announce(published: Published, name: str) -> None:
    """Emit that the gate refused the run of recipe `name`, or that the run has become champion."""
    if published.verdict.passed and not published.promoted:
        return
    event = PROMOTED if published.promoted else GATE_REFUSED
    payload = {
        "run": published.run, "recipe": name, "bits_per_byte": published.record.bits_per_byte.model,
        "report": (published.folder / "report.html").as_uri(), "reasons": " ".join(published.verdict.reasons()),
    }  # fmt: skip
    _emit(event, f"qalam.recipe.{name}", name, payload)


def corpus_updated(name: str, files: list[str]) -> None:
    """Emit that the corpus of recipe `name` has new text; `files` are what changed, of which at most 100 are sent."""
    _emit(CORPUS_UPDATED, f"qalam.corpus.{name}", name, {"recipe": name, "files": files[:100], "changed": len(files)})


def _emit(event: str, resource: str, name: str, payload: dict[str, object]) -> None:
    if get_current_settings().api.url:
        emit_event(event, {"prefect.resource.id": resource, "prefect.resource.name": name}, payload=payload)
