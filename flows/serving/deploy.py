"""`qalam deploy`: create or update work pools, the training limit, deployments and automations on a Prefect server.
The deployments are defined in deployments/prefect.yaml. Deploying again changes nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from httpx import HTTPError
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.types import SecretDict
from prefect.workers.process import ProcessWorker

from al_qalam.flows.recipes import recipe_path
from al_qalam.flows.serving.prefect_env import CALLER
from al_qalam.tasks.events import GATE_REFUSED, PROMOTED, WAITING
from al_qalam.tasks.policy import TRAINING_SLOTS
from qalam_core.errors import QalamError
from qalam_core.recipe import Recipe
from qalam_core.store import DEFAULT_STORE

POOLS = {
    "qalam-cpu": "Runs builds, and their training unless another pool is configured for it.",
    "qalam-gpu": "Runs training. Its machines have a GPU and see the same store.",
}

ZOMBIE_SECONDS = 95
"""A run without a heartbeat for this long is marked Crashed: three heartbeats of 30 s, and a margin."""


def settings(recipe: str = "", set: Sequence[str] = ()) -> dict[str, Any]:
    """The build step of deployments/prefect.yaml; -> the values of its templates.

    `recipe` is a recipe file or the name of an included one; `set` are `section.key=value` strings, as of
    `qalam build --set`. $QALAM_RECIPE, $QALAM_STORE and $QALAM_TRAINING, which `qalam deploy` sets, override
    prefect.yaml. Raises RecipeError.
    """
    chosen = os.environ.get("QALAM_RECIPE") or recipe
    parsed = Recipe.load(recipe_path(chosen), set)
    store = Path(os.environ.get("QALAM_STORE") or DEFAULT_STORE).resolve()
    return {
        "recipe": parsed.canonical(),
        "name": parsed.name,
        "store": str(store),
        "training": os.environ.get("QALAM_TRAINING", ""),
        "version": _version(),
        "worker": {**CALLER, "QALAM_STORE": str(store)},
    }


def _version() -> str:
    """`git describe` of a checkout, else the installed version."""
    home = Path(__file__).resolve().parents[2]
    if (home / ".git").exists():
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--tags"], cwd=home, capture_output=True, text=True, check=False
        )
        if described.returncode == 0:
            return described.stdout.strip()
    return metadata.version("al-qalam")


async def deploy(recipe: str, store: Path, training: str, slots: int, notify: str) -> list[str]:
    """Create or update everything on the server; -> lines that describe what it has now.

    `training` is "" (train where a build runs) or a deployment that trains. `slots` is the number of trainings that
    may run at once. `notify` is "", the URL of a webhook, or TYPE/NAME of a notification block on the server.
    Raises QalamError.
    """
    parsed = Recipe.load(recipe_path(recipe))
    lines = []
    async with get_client() as client:
        try:
            await client.hello()
        except PrefectHTTPStatusError as error:
            code = error.response.status_code
            cure = "set PREFECT_API_AUTH_STRING to its password" if code == 401 else "is it a Prefect server?"
            raise QalamError(f"{client.api_url}: the server responds with status {code}; {cure}") from None
        except HTTPError as error:
            raise QalamError(
                f"{client.api_url}: the server does not respond ({type(error).__name__}); is it running?"
            ) from None
        for name, description in POOLS.items():
            await _pool(client, name, description)
        lines.append("work pools   " + ", ".join(POOLS))
        await client.upsert_global_concurrency_limit_by_name(TRAINING_SLOTS, slots)
        lines.append(f"limit        {TRAINING_SLOTS}: {slots} at once")
        lines += [f"deployment   {name}" for name in _prefect_deploy(recipe, store, training)]
        target = await _target(notify) if notify else None
        for automation in _automations(parsed.name, target):
            how = await _upsert(client, automation)
            lines.append(f"automation   {automation.name} ({how})")
    return lines


async def _pool(client: PrefectClient, name: str, description: str) -> None:
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(
            WorkPoolCreate(name=name, type="process", description=description, base_job_template=template)
        )
        return
    if pool.type != "process":
        raise QalamError(f"work pool {name} is of type {pool.type}, not process; delete it, or use `prefect deploy`")
    if pool.description != description:
        await client.update_work_pool(name, WorkPoolUpdate(description=description))


def _prefect_deploy(recipe: str, store: Path, training: str) -> list[str]:
    """Run `prefect deploy --all` on deployments/prefect.yaml; -> the names of the deployments."""
    file = Path(str(resources.files("al_qalam.deployments"))) / "prefect.yaml"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    environment = {
        **os.environ, "QALAM_RECIPE": str(recipe_path(recipe).resolve()), "QALAM_STORE": str(store.resolve()),
        "QALAM_TRAINING": training, "NO_COLOR": "1", "COLUMNS": "200",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    names = re.findall(r"Deployment '([^']+)' successfully created", done.stdout)
    if done.returncode or not names:
        output = [line for line in (done.stdout + done.stderr).splitlines() if line.strip(" │╭╮╰╯─")]
        raise QalamError(f"prefect deploy failed: {output[-1].strip(' │') if output else done.returncode}")
    return names


# -- automations ------------------------------------------------------------------------------------


async def _target(notify: str) -> UUID:
    """The id of the notification block to send to; for a URL one is created, which Prefect stores encrypted."""
    if "://" not in notify:
        try:
            block: Block = await Block.aload(notify)
            document = block._block_document_id
        except ValueError:
            raise QalamError(
                f"--notify {notify}: neither a URL nor TYPE/NAME of a notification block on the server"
            ) from None
        assert document
        return document
    webhook = CustomWebhookNotificationBlock(
        # as a secret: a webhook's URL often contains its key, and the API returns a block's plain fields
        name="qalam",
        url="{{target}}",
        secrets=SecretDict({"target": notify}),
        json_data={"subject": "{{subject}}", "text": "{{body}}"},
    )
    saved: UUID = await webhook.asave("qalam-notify", overwrite=True)
    return saved


def _automations(recipe: str, target: UUID | None) -> list[AutomationCore]:
    """The automations of a recipe; notifications only when there is a target."""
    ended: set[str] = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}
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
                    message=f"no heartbeat for {ZOMBIE_SECONDS} s: the process is gone; a new run resumes the build",
                )
            ],
        )
    ]  # fmt: skip
    if target is None:
        return found
    of_recipe = {"prefect.resource.id": f"qalam.recipe.{recipe}"}
    link = "{{ event.payload.report }}"
    bits = "{{ event.payload.bits_per_byte }} bits per byte"
    return [
        *found,
        _notice(f"qalam: notify when the gate refuses {recipe}", of_recipe, GATE_REFUSED, target,
                f"{recipe}: the gate refused {{{{ event.payload.run }}}}",
                f"{bits}. {{{{ event.payload.reasons }}}} The champion is unchanged. Report: {link}"),
        _notice(f"qalam: notify when a person must decide about {recipe}", of_recipe, WAITING, target,
                f"{recipe}: {{{{ event.payload.run }}}} waits for a person",
                f"{bits}. {{{{ event.payload.decision }}}} The champion is unchanged. Report: {link}"),
        _notice(f"qalam: notify when {recipe} has a new champion", of_recipe, PROMOTED, target,
                f"{recipe}: {{{{ event.payload.run }}}} is champion", f"{bits}. Report: {link}"),
        _notice("qalam: notify when a run crashes", every, "prefect.flow-run.Crashed", target,
                "{{ flow.name }}: {{ flow_run.name }} crashed",
                "{{ flow_run.state.message }} A new run reuses what is finished. {{ flow_run|ui_url }}"),
    ]  # fmt: skip


def _notice(
    name: str, match: dict[str, str], event: str, target: UUID, subject: str, body: str,
    posture: Literal[Posture.Reactive] = Posture.Reactive,
) -> AutomationCore:  # fmt: skip
    return AutomationCore(
        name=name,
        trigger=EventTrigger(match=match, expect={event}, posture=posture, threshold=1),
        actions=[SendNotification(block_document_id=target, subject=subject, body=body)],
    )  # fmt: skip


async def _upsert(client: PrefectClient, wanted: AutomationCore) -> str:
    """Create the automation, or update the one with its name; delete further ones with this name."""
    same = await client.read_automations_by_name(wanted.name)
    for surplus in same[1:]:
        await client.delete_automation(surplus.id)
    if not same:
        await client.create_automation(wanted)
        return "new"
    # the client sends only fields that were set; the server requires the type fields, which are defaults
    await client.update_automation(
        same[0].id, AutomationCore.model_validate(wanted.model_dump(mode="json", exclude={"owner_resource"}))
    )
    return "kept"
