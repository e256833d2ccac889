"""Events for the server's automations. An event is sent when the server has confirmed it; without a server none is.

The events of builds wait in the store's outbox, a file each, until then: a model is published whether or not the server
responds. An event that is sent twice has the same id, and the server acts on it once.
"""

from __future__ import annotations

import logging
import time
from json import JSONDecodeError
from pathlib import Path

from httpx import URL, HTTPError, codes
from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import ValidationError

from al_qalam.tasks.links import report_link, review_link
from al_qalam.tasks.policy import server
from qalam_core.display import printable
from qalam_core.errors import QalamError
from qalam_core.files import replace_file
from qalam_core.pipeline.publish import Published
from qalam_core.store import Store

log = logging.getLogger("qalam_core.events")

CORPUS_UPDATED = "qalam.corpus.updated"
GATE_REFUSED = "qalam.gate.refused"
WAITING = "qalam.champion.waiting"
PROMOTED = "qalam.champion.promoted"
PROPOSED = "qalam.proposal.decided"

NOT_PREFECTS = (JSONDecodeError, ValidationError)
"""What Prefect's client raises when another program answers, such as a proxy with a page to sign in."""

DELAYS = (1, 2, 4)
"""Seconds between the attempts to send: a server that restarts responds again within them."""


def announce(store: Store, published: Published, name: str) -> None:
    """Put an event into the outbox when this run of recipe `name` has become champion, when only a person may make it
    champion, or when the gate refused it; and one for each decision on a proposal."""
    proposal = published.record.proposal
    event = PROMOTED if published.promoted else WAITING if published.held or published.waits else GATE_REFUSED
    review = published.review
    same = published.verdict.passed and not published.promoted and not published.held
    events = [*([] if same else [event]), *([PROPOSED] if proposal else [])]
    payload: dict[str, object] = {
        "run": published.run, "recipe": name, "bits_per_byte": published.record.bits_per_byte.model,
        "report": report_link(published.run), "path": str(published.folder / "report.html"),
        "review": "" if isinstance(review, str) else review_link(published.run),
        "changes": printable(review if isinstance(review, str) else review.verdict),
        # a webhook's receiver may show them in a terminal or a chat
        "reasons": printable(" ".join(published.verdict.reasons())), "decision": printable(published.decision),
    }  # fmt: skip
    if proposal:
        payload |= {
            "passed": published.verdict.passed, "parent": published.record.parent,
            "who": printable(proposal.who), "why": printable(proposal.why),
        }  # fmt: skip
    for event in events if server_address() else ():
        waiting = _event(event, f"qalam.recipe.{name}", name, payload)
        with store.disk_errors("publish"):
            replace_file(_outbox(store) / f"{waiting.id}.json", waiting.model_dump_json(indent=1).encode())


def deliver(store: Store) -> str:
    """Send the events in the outbox, oldest first; -> one line about those that remain there, "" for none."""
    waiting, problem = dict[Path, Event](), ""
    for path in _outbox(store).glob("*.json") if server_address() else ():
        try:
            waiting[path] = Event.model_validate_json(path.read_bytes())
        except FileNotFoundError:  # another build has sent it
            continue
        except (OSError, ValidationError):
            problem = f"{path} is not a readable event; delete it"
    if waiting:
        try:
            _send(sorted(waiting.values(), key=lambda event: event.occurred))
        except QalamError as error:
            count = "a notice was" if len(waiting) == 1 else f"{len(waiting)} notices were"
            problem = f"{count} not delivered, and the next build or `qalam watch` with this store sends it: {error}"
        else:
            for path in waiting:
                path.unlink(missing_ok=True)
    if problem:
        log.warning("%s", problem)
    return problem


def undelivered(store: Store) -> int:
    """How many events are in the outbox."""
    return sum(1 for _ in _outbox(store).glob("*.json"))


def corpus_updated(name: str, files: list[str]) -> None:
    """Send that the corpus of recipe `name` has changed; the event lists at most 100 of the changed `files`. Raises
    QalamError when the server does not confirm it."""
    payload = {"recipe": name, "files": [printable(file) for file in files[:100]], "changed": len(files)}
    _send([_event(CORPUS_UPDATED, f"qalam.corpus.{name}", name, payload)])


def server_address() -> str:
    """The address of the server's API, without a password; "" for a build without a server."""
    url = server()
    return str(URL(url).copy_with(userinfo=b"")) if url else ""


def server_problem(error: HTTPError | JSONDecodeError | ValidationError) -> str:
    """What is wrong with the server, and what to do about it."""
    if isinstance(error, NOT_PREFECTS):
        return "the answer is not one of Prefect's; is it a Prefect server?"
    if isinstance(error, PrefectHTTPStatusError):
        return _responds(error.response.status_code)
    return f"the server does not respond ({type(error).__name__}); is it running?"


def _responds(status: int) -> str:
    cure = "set PREFECT_API_AUTH_STRING to its password" if status == 401 else "is it a Prefect server?"
    return f"the server responds with status {status}; {cure}"


def _outbox(store: Store) -> Path:
    return store.root / "outbox"


def _event(event: str, resource: str, name: str, payload: dict[str, object]) -> Event:
    labels = {"prefect.resource.id": resource, "prefect.resource.name": name}
    return Event(event=event, resource=Resource.model_validate(labels), payload=payload)


def _send(events: list[Event]) -> None:
    """Send events, and return when the server has confirmed them. Raises QalamError."""
    body = [event.model_dump(mode="json") for event in events]
    with get_client(sync_client=True) as client:
        for delay in (*DELAYS, 0):
            try:
                status = client.request("POST", "/events", json=body).status_code
                if status == codes.NO_CONTENT:
                    return
                problem = _responds(status)
                break  # a page to sign in, to which a proxy has led
            except (HTTPError, *NOT_PREFECTS) as error:
                problem = server_problem(error)
                if not isinstance(error, HTTPError) or (
                    isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500
                ):
                    break  # it would respond so again
            time.sleep(delay)
    raise QalamError(f"{server_address()}: {problem}")
