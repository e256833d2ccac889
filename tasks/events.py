"""Events: what a build tells the server's automations, and how somebody says that a corpus has new text.
Takes what happened, gives an event with plain values; without a server nobody listens, and nothing is sent.
It does not know who is notified: the automations do (flows/deployment.py).
"""

from __future__ import annotations

import json

from prefect.events import emit_event
from prefect.settings import get_current_settings

from qalam_core.pipeline.build import Published

__all__ = ["CORPUS_UPDATED", "GATE_REFUSED", "PROMOTED", "announce", "corpus_updated"]

CORPUS_UPDATED = "qalam.corpus.updated"
GATE_REFUSED = "qalam.gate.refused"
PROMOTED = "qalam.champion.promoted"


def announce(published: Published, name: str) -> None:
    """Say that the gate refused the run of recipe `name`, or that the run is champion from now on."""
    if published.verdict.passed and not published.promoted:
        return
    event = PROMOTED if published.promoted else GATE_REFUSED
    record = json.loads((published.folder / "run.json").read_text(encoding="utf-8"))
    payload = {
        "run": published.run, "recipe": name, "bits_per_byte": record["bits_per_byte"]["model"],
        "report": (published.folder / "report.html").as_uri(), "reasons": " ".join(published.verdict.reasons()),
    }  # fmt: skip
    _emit(event, f"qalam.recipe.{name}", name, payload)


def corpus_updated(name: str, files: list[str]) -> None:
    """Say that the corpus of recipe `name` has new text; `files` are what changed, at most 100 are told."""
    _emit(CORPUS_UPDATED, f"qalam.corpus.{name}", name, {"recipe": name, "files": files[:100], "changed": len(files)})


def _emit(event: str, resource: str, name: str, payload: dict[str, object]) -> None:
    if get_current_settings().api.url:
        emit_event(event, {"prefect.resource.id": resource, "prefect.resource.name": name}, payload=payload)
