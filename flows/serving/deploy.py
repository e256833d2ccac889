"""`qalam deploy`: create or update work pools, the training limit, deployments and automations on a Prefect server.
The deployments are defined in deployments/prefect.yaml. What the server has as it should be is left as it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml
from httpx import HTTPError
from prefect import Flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessWorker

from al_qalam.flows.recipes import recipe_path
from al_qalam.flows.serving.automations import deploy_automations, recall, same_automation
from al_qalam.flows.serving.prefect_env import CALLER
from al_qalam.tasks.events import NOT_PREFECTS, server_address, server_problem
from al_qalam.tasks.links import REPORT_URL, report_base
from al_qalam.tasks.policy import TRAINING_SLOTS, tag_of
from qalam_core.errors import QalamError
from qalam_core.object_store import store_at
from qalam_core.objects import is_url
from qalam_core.pipeline.lineage import changed_values
from qalam_core.recipe import Recipe
from qalam_core.store import DEFAULT_STORE

POOLS = {
    "qalam-cpu": "Runs builds, and their training unless another pool is configured for it.",
    "qalam-gpu": "Runs training. Its machines have a GPU and see the same store.",
}

SHARED = "train_model/train"
"""The deployment of all recipes of a server; its parameters have everything that it needs."""

_FIXED_NAMES = (
    "build_model/nightly-build", "build_model/on-new-corpus", "evaluate_champion/evaluate-champion",
    "reproduce_champion/reproduce-champion",
)  # fmt: skip
"""Of earlier versions, in which a server had the deployments of one recipe."""


def settings(recipe: str = "", set: Sequence[str] = ()) -> dict[str, Any]:
    """The build step of deployments/prefect.yaml; -> the values of its templates.

    `recipe` is a recipe file or the name of an included one; `set` are `section.key=value` strings, as of
    `qalam build --set`. $QALAM_RECIPE, $QALAM_STORE and $QALAM_TRAINING, which `qalam deploy` sets, override
    prefect.yaml. Raises RecipeError.
    """
    store = store_at(os.environ.get("QALAM_STORE") or DEFAULT_STORE).place
    return _values(os.environ.get("QALAM_RECIPE") or recipe, set, store, os.environ.get("QALAM_TRAINING", ""))


def _values(recipe: str, set: Sequence[str], store: str, training: str) -> dict[str, Any]:
    parsed, base = Recipe.load(recipe_path(recipe), set), report_base()
    return {
        "recipe": parsed.canonical(),
        "name": parsed.name,
        "tags": ["qalam", tag_of(parsed.name)],
        "store": store,
        "training": training,
        "version": _version(),
        "worker": {**CALLER, "QALAM_STORE": store, **({REPORT_URL: base} if base else {})},
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


async def deploy(
    recipe: str, store: str, training: str, slots: int | None, notify: str, restarted: bool = False
) -> list[str]:
    """Create or update on the server what is not there as it should be; -> lines that describe what it has now.

    `training` is "" (train where a build runs) or a deployment that trains. `slots` is the number of trainings that
    may run at once; None: as many as the server has, at first 1. `notify` is "", the URL of a webhook, or TYPE/NAME of
    a notification block on the server. `restarted`: the server has just been started again. Raises QalamError.
    """
    name = Recipe.load(recipe_path(recipe)).name
    async with get_client() as client:
        try:
            await client.hello()
            if restarted:
                await recall(client)
            lines = [f"work pool    {pool} ({await _pool(client, pool, text)})" for pool, text in POOLS.items()]
            lines.append(f"limit        {TRAINING_SLOTS} ({await _limit(client, slots)})")
            lines += await _deployments(client, recipe, store, training)
            lines += await _remove_fixed_names(client, name)
            return lines + await deploy_automations(client, name, notify)
        except (HTTPError, *NOT_PREFECTS) as error:
            raise QalamError(f"{server_address()}: {server_problem(error)}") from None


async def _pool(client: PrefectClient, name: str, description: str) -> str:
    try:
        pool = await client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(
            WorkPoolCreate(name=name, type="process", description=description, base_job_template=template)
        )
        return "new"
    if pool.type != "process":
        raise QalamError(f"work pool {name} is of type {pool.type}, not process; delete it, or use `prefect deploy`")
    paused = f", but paused: no run starts until `prefect work-pool resume {name}`" if pool.is_paused else ""
    if pool.description == description:
        return f"unchanged{paused}"
    await client.update_work_pool(name, WorkPoolUpdate(description=description))
    return f"updated{paused}"


async def _limit(client: PrefectClient, slots: int | None) -> str:
    try:
        before = (await client.read_global_concurrency_limit_by_name(TRAINING_SLOTS)).limit
    except ObjectNotFound:
        before = 0
    wanted = slots or before or 1
    if before == wanted:
        return f"{wanted} at once, unchanged"
    await client.upsert_global_concurrency_limit_by_name(TRAINING_SLOTS, wanted)
    return f"{wanted} at once, {f'updated from {before}' if before else 'new'}"


# -- deployments ------------------------------------------------------------------------------------


async def _deployments(client: PrefectClient, recipe: str, store: str, training: str) -> list[str]:
    """Run `prefect deploy` for the deployments of prefect.yaml that differ from the server's; -> a line for each."""
    file = Path(str(resources.files("al_qalam.deployments"))) / "prefect.yaml"
    lines, stale = [], []
    for template in yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]:
        ((_, step),) = template["build"][0].items()
        values = {step["id"]: _values(recipe, step.get("set", ()), store, training)}
        wanted = apply_values({key: value for key, value in template.items() if key != "build"}, values)
        flow: Flow[..., Any] = load_flow_from_entrypoint(wanted["entrypoint"])
        name = f"{flow.name}/{wanted['name']}"
        try:
            found = await client.read_deployment_by_name(name)
        except ObjectNotFound:
            stale.append(template["name"])
            lines.append(f"deployment   {name} (new)")
            continue
        if elsewhere := _elsewhere(found, store):
            # after the first of them was deleted, the others are replaced
            if (name != SHARED and not lines) or training == name:
                rename = "" if name == SHARED else "rename the recipe, "
                raise QalamError(
                    f"{name} on the server has the store {elsewhere}: deploy with --store {elsewhere}, {rename}or "
                    f"first `prefect deployment delete {name}`"
                )
            if name == SHARED:
                lines.append(f"deployment   {name} (unchanged, for the store {elsewhere})")
                continue
        changes = await _changes(client, found, wanted, flow)
        if changes:
            stale.append(template["name"])
        shown = "; ".join(changes[:3]) + ("; ..." if len(changes) > 3 else "")
        lines.append(f"deployment   {name} ({f'updated: {shown}' if changes else 'unchanged'})")
    if stale:
        _prefect_deploy(file, stale, recipe, store, training)
    return lines


def _elsewhere(found: DeploymentResponse, store: str) -> str:
    """The store of a deployment if it is another one that still exists; a store may be moved."""
    served = found.parameters.get("store", "")
    if is_url(served) or is_url(store):
        return "" if served in ("", store) else served
    try:
        same = not served or not Path(served).is_dir() or (Path(store).is_dir() and Path(store).samefile(served))
    except PermissionError:
        same = False
    return "" if same else served


async def _changes(
    client: PrefectClient, found: DeploymentResponse, wanted: dict[str, Any], flow: Flow[..., Any]
) -> list[str]:
    """One line for each value of a deployment that the server does not have as wanted."""
    limit, options = found.global_concurrency_limit, found.concurrency_options
    has = {
        "version": found.version, "description": found.description, "entrypoint": found.entrypoint,
        "parameters": found.parameters, "tags": sorted(found.tags), "pull": found.pull_steps or [],
        "schedules": sorted(
            [row.slug, getattr(row.schedule, "cron", None), getattr(row.schedule, "timezone", None), row.active]
            for row in found.schedules
        ),
        "concurrency_limit": limit and options and [limit.limit, options.collision_strategy.value],
        "work_pool": [found.work_pool_name, found.job_variables], "form": found.parameter_openapi_schema,
    }  # fmt: skip
    one = wanted.get("concurrency_limit")
    wants = {
        **{key: wanted[key] for key in ("version", "description", "entrypoint", "parameters", "pull")},
        "tags": sorted(wanted["tags"]),
        "schedules": sorted(
            [row["slug"], row["cron"], row["timezone"], row["active"]] for row in wanted.get("schedules", ())
        ),
        "concurrency_limit": one and [one["limit"], one["collision_strategy"]],
        "work_pool": [wanted["work_pool"]["name"], wanted["work_pool"].get("job_variables", {})],
        "form": parameter_schema(flow).model_dump(exclude_unset=True),
    }
    changes = list(changed_values(has, json.loads(json.dumps(wants))))
    related = await client.read_resource_related_automations(f"prefect.deployment.{found.id}")
    for row in wanted.get("triggers", ()):
        trigger = DeploymentEventTrigger.model_validate(row)
        trigger.set_deployment_id(found.id)
        if not any(same_automation(row, trigger.as_automation()) for row in related):
            changes.append(f"trigger {trigger.name}")
    return changes


def _prefect_deploy(file: Path, names: list[str], recipe: str, store: str, training: str) -> None:
    """Run `prefect deploy` on the deployments of a file with these names, in which templates are not filled in."""
    chosen = [part for name in names for part in ("--name", name)]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), *chosen]
    environment = {
        **os.environ, "QALAM_RECIPE": str(recipe_path(recipe).resolve()), "QALAM_STORE": store,
        "QALAM_TRAINING": training, "NO_COLOR": "1", "COLUMNS": "200",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    created = re.findall(r"Deployment '[^']+' successfully created", done.stdout)
    if done.returncode or len(created) != len(names):
        output = [line for line in (done.stdout + done.stderr).splitlines() if line.strip(" │╭╮╰╯─")]
        raise QalamError(f"prefect deploy failed: {output[-1].strip(' │') if output else done.returncode}")


async def _remove_fixed_names(client: PrefectClient, recipe: str) -> list[str]:
    """Delete the deployments that an earlier version made for this recipe; -> a line for each."""
    lines = []
    for name in _FIXED_NAMES:
        try:
            found = await client.read_deployment_by_name(name)
        except ObjectNotFound:
            continue
        if recipe == found.parameters.get("name", found.parameters.get("recipe", {}).get("name")):
            await client.delete_resource_owned_automations(f"prefect.deployment.{found.id}")
            await client.delete_deployment(found.id)
            lines.append(f"deployment   {name} (removed; it is {name}-{recipe} now)")
    return lines
