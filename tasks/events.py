"""Events for the server's automations (flows/serving/deploy.py). Without a server nothing is sent."""

from __future__ import annotations

from prefect.events import emit_event
from prefect.settings import get_current_settings

from qalam_core.display import printable
from qalam_core.pipeline.publish import Published

CORPUS_UPDATED = "qalam.corpus.updated"
GATE_REFUSED = "qalam.gate.refused"
WAITING = "qalam.champion.waiting"
PROMOTED = "qalam.champion.promoted"


def announce(published: Published, name: str) -> None:
    """Emit an event when this run of recipe `name` has become champion, when only a person may make it champion, or
    when the gate refused it."""
    if published.verdict.passed and not published.promoted and not published.held:
        return
    event = PROMOTED if published.promoted else WAITING if published.held or published.waits else GATE_REFUSED
    payload = {
        "run": published.run, "recipe": name, "bits_per_byte": published.record.bits_per_byte.model,
        "report": (published.folder / "report.html").as_uri(),
        # a webhook's receiver may show them in a terminal or a chat
        "reasons": printable(" ".join(published.verdict.reasons())), "decision": printable(published.decision),
    }  # fmt: skip
    _emit(event, f"qalam.recipe.{name}", name, payload)


def corpus_updated(name: str, files: list[str]) -> None:
    """Emit that the corpus of recipe `name` has changed; the event lists at most 100 of the changed `files`."""
    payload = {"recipe": name, "files": [printable(file) for file in files[:100]], "changed": len(files)}
    _emit(CORPUS_UPDATED, f"qalam.corpus.{name}", name, payload)


def _emit(event: str, resource: str, name: str, payload: dict[str, object]) -> None:
    if get_current_settings().api.url:
        emit_event(event, {"prefect.resource.id": resource, "prefect.resource.name": name}, payload=payload)
