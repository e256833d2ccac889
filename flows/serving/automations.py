"""The automations of a recipe: runs without heartbeats are marked Crashed, and a webhook or a block is notified.
One that the server has already keeps its ids: a trigger with a new id forgets the events that it has seen, and so the
runs that it watches.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.events import Event, Resource
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.types import SecretDict

from al_qalam.tasks.events import GATE_REFUSED, PROMOTED, WAITING
from al_qalam.tasks.policy import REFUSED, tag_of
from qalam_core.errors import QalamError

ZOMBIE_SECONDS = 95
"""A run without a heartbeat for this long is marked Crashed: three heartbeats of 30 s, and a margin."""

LATE_SECONDS = 3600
"""A run that no worker takes for this long is notified: until then the worker may be busy with others."""

_OF_ALL_RECIPES = "qalam: notify when a run crashes"
"""Of earlier versions: shared, so that the last recipe to be deployed chose who was notified of all."""


async def deploy_automations(client: PrefectClient, recipe: str, notify: str) -> list[str]:
    """Create or update the automations of a recipe, and the block that they notify; -> a line for each. `notify` is "",
    the URL of a webhook, or TYPE/NAME of a notification block on the server. Raises QalamError."""
    lines, target = [], None
    if notify:
        target, line = await _target(recipe, notify)
        lines.append(line)
    lines += [f"automation   {wanted.name} ({await _upsert(client, wanted)})" for wanted in automations(recipe, target)]
    for old in await client.read_automations_by_name(_OF_ALL_RECIPES) if target else ():
        await client.delete_automation(old.id)
        lines.append(f"automation   {old.name} (removed; each recipe has its own)")
    return lines


def same_automation(found: Automation, wanted: AutomationCore) -> bool:
    """Whether the server has this automation, whatever the ids of its triggers."""
    core = AutomationCore.model_validate(found.model_dump())
    return core.model_dump(exclude={"owner_resource"}) == wanted.model_dump(exclude={"owner_resource"})


async def _upsert(client: PrefectClient, wanted: AutomationCore) -> str:
    """Create the automation, or update the one with its name; delete further ones with this name."""
    same = await client.read_automations_by_name(wanted.name)
    for surplus in same[1:]:
        await client.delete_automation(surplus.id)
    if not same:
        await client.create_automation(wanted)
        return "new"
    if same_automation(same[0], wanted):
        return "unchanged"
    # the client sends only fields that were set; the server requires the type fields, which are defaults
    await client.update_automation(
        same[0].id, AutomationCore.model_validate(wanted.model_dump(mode="json", exclude={"owner_resource"}))
    )
    return "updated"


async def _target(recipe: str, notify: str) -> tuple[UUID, str]:
    """The id of the notification block to send to, and what became of it; for a URL each recipe has its own block,
    which Prefect stores encrypted."""
    if "://" not in notify:
        found = await _block(notify)
        if found is None:
            raise QalamError(f"--notify {notify}: neither a URL nor TYPE/NAME of a notification block on the server")
        assert found._block_document_id
        return found._block_document_id, f"notification {notify} (unchanged)"
    name = f"qalam-notify-{recipe}"
    webhook = CustomWebhookNotificationBlock(
        # as a secret: a webhook's URL often contains its key, and the API returns a block's plain fields
        name="qalam",
        url="{{target}}",
        secrets=SecretDict({"target": notify}),
        json_data={"subject": "{{subject}}", "text": "{{body}}"},
    )
    existing = await _block(f"custom-webhook/{name}")
    fields = set(CustomWebhookNotificationBlock.model_fields)
    if (
        existing
        and existing._block_document_id
        and existing.model_dump(include=fields) == webhook.model_dump(include=fields)
    ):
        return existing._block_document_id, f"notification custom-webhook/{name} (unchanged)"
    saved: UUID = await webhook.asave(name, overwrite=True)
    return saved, f"notification custom-webhook/{name} ({'updated' if existing else 'new'})"


async def _block(name: str) -> Block | None:
    try:
        found: Block = await Block.aload(name)
    except ValueError:
        return None
    return found


def automations(recipe: str, target: UUID | None) -> list[AutomationCore]:
    """The automations of a recipe; notifications only when there is a target."""
    names = ("Completed", "Failed", REFUSED, "Crashed", "Cancelled")
    ended: set[str] = {f"prefect.flow-run.{name}" for name in names}
    every = {"prefect.resource.id": "prefect.flow-run.*"}
    found = [
        AutomationCore(
            name="qalam: a run without heartbeats has crashed",
            description="Marks a run whose process is gone as Crashed, which frees its slots.",
            trigger=EventTrigger(
                match=every,
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", "prefect.flow-run.Suspended", *ended},
                posture=Posture.Proactive, threshold=1, within=timedelta(seconds=ZOMBIE_SECONDS),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message=f"no heartbeat for {ZOMBIE_SECONDS} s: the process is gone.",
                )
            ],
        )
    ]  # fmt: skip
    if target is None:
        return found
    of_recipe = {"prefect.resource.id": f"qalam.recipe.{recipe}"}
    tagged = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag_of(recipe)}"}
    link = "{{ event.payload.report or 'qalam show ' ~ event.payload.run }}"
    bits = "{{ event.payload.bits_per_byte }} bits per byte"
    review = "{% if event.payload.changes %} {{ event.payload.changes }}{% endif %}"
    review += "{% if event.payload.review %} Review: {{ event.payload.review }}{% endif %}"
    return [
        *found,
        _notice(f"qalam: notify when the gate refuses {recipe}", of_recipe, GATE_REFUSED, target,
                f"{recipe}: the gate refused {{{{ event.payload.run }}}}",
                f"{bits}. {{{{ event.payload.reasons }}}} The champion is unchanged.{review} Report: {link}"),
        _notice(f"qalam: notify when a person must decide about {recipe}", of_recipe, WAITING, target,
                f"{recipe}: {{{{ event.payload.run }}}} waits for a person",
                f"{bits}. {{{{ event.payload.decision }}}} The champion is unchanged.{review} Report: {link}"),
        _notice(f"qalam: notify when {recipe} has a new champion", of_recipe, PROMOTED, target,
                f"{recipe}: {{{{ event.payload.run }}}} is champion", f"{bits}.{review} Report: {link}"),
        _notice(f"qalam: notify when a run of {recipe} crashes", every, "prefect.flow-run.Crashed", target,
                "{{ flow.name }}: {{ flow_run.name }} crashed",
                "{{ flow_run.state.message }} A new run reuses what is finished. {{ flow_run|ui_url }}",
                related=tagged),
        _notice(f"qalam: notify when a run of {recipe} fails", every, "prefect.flow-run.Failed", target,
                "{{ flow.name }}: {{ flow_run.name }} failed",
                "{{ flow_run.state.message }} {{ flow_run|ui_url }}", related=tagged),
        AutomationCore(
            name=f"qalam: notify when no worker runs {recipe}",
            trigger=EventTrigger(
                match=every, match_related=tagged, for_each={"prefect.resource.id"}, after={"prefect.flow-run.Late"},
                # a worker has taken it, or nobody wants it any more
                expect={"prefect.flow-run.Pending", "prefect.flow-run.Running", *ended},
                posture=Posture.Proactive, threshold=1, within=timedelta(seconds=LATE_SECONDS),
            ),
            actions=[
                SendNotification(
                    block_document_id=target,
                    subject="{{ flow.name }}: {{ flow_run.name }} has not begun",
                    body="It waits for a worker, or for a place on one. {{ flow_run|ui_url }}",
                )
            ],
        ),
    ]  # fmt: skip


def _notice(
    name: str, match: dict[str, str], event: str, target: UUID, subject: str, body: str,
    related: dict[str, str] | None = None, posture: Literal[Posture.Reactive] = Posture.Reactive,
) -> AutomationCore:  # fmt: skip
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            match=match, match_related=related or {}, expect={event}, posture=posture, threshold=1
        ),
        actions=[SendNotification(block_document_id=target, subject=subject, body=body)],
    )  # fmt: skip


async def recall(client: PrefectClient) -> None:
    """Tell a server that has been restarted the events that its active runs began with.

    It remembers in memory which events it has seen, and delays by 15 minutes an event that follows one that it has not:
    also that a run has crashed which began less than 5 minutes before.
    """
    active = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=active)))
    events = [
        # an event of a state has its id; under its own name it would start other people's automations again
        Event(
            id=run.state_id,
            event="qalam.server.restarted",
            resource=Resource.model_validate({"prefect.resource.id": f"prefect.flow-run.{run.id}"}),
        )
        for run in runs
        if run.state_id
    ]
    if events:
        await client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])
