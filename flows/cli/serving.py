"""The commands about what runs by itself: up, down, deploy, watch.
Take names and addresses; give a running stack, a server with deployments, events when a corpus changes.
They do not know what a deployment does.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from al_qalam.flows.cli.options import RecipeArgument, StoreOption
from al_qalam.flows.cli.terminal import out
from al_qalam.flows.recipes import recipe_path
from al_qalam.flows.serving.prefect_env import CALLER
from qalam_core.errors import QalamError
from qalam_core.recipe import Recipe
from qalam_core.store import DEFAULT_STORE, Store

__all__ = ["deploy", "down", "up", "watch"]

Notify = Annotated[
    str,
    typer.Option(
        envvar="QALAM_NOTIFY", metavar="TARGET", show_default=False, show_envvar=True,
        help="Where to send refusals, champions and crashes: a webhook's URL, or TYPE/NAME of a notification block.",
    ),
]  # fmt: skip
Slots = Annotated[int, typer.Option(min=1, help="Trainings that may run at once: one for each GPU.")]


def up(
    recipe: RecipeArgument = "demo",
    store: StoreOption = DEFAULT_STORE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's, on 127.0.0.1.")] = 4200,
    notify: Notify = "",
) -> None:
    """Start a local stack: a Prefect server, the deployments of a recipe, one worker."""
    from al_qalam.flows.serving.stack import Stack

    Recipe.load(recipe_path(recipe))  # a mistake is reported before anything is started
    Store(store).ensure_writable()
    os.environ.setdefault("PREFECT_HOME", str(store.resolve() / "server"))

    def ready(api: str) -> None:
        out.print(f"server       {api.removesuffix('/api')}", soft_wrap=True)
        os.environ["PREFECT_API_URL"] = api
        _deploy(recipe, store, "", 1, notify)

    with out.status("starting the server; a first start takes half a minute"):
        api = Stack(store).start(port, "qalam-cpu", 2, ready)
    out.print("worker       local, for qalam-cpu, two runs at once")
    out.print(f"\nrun one:     PREFECT_API_URL={api} prefect deployment run build_model/nightly-build", soft_wrap=True)
    out.print(f"see it:      {api.removesuffix('/api')}/deployments", soft_wrap=True)
    out.print("stop it all: qalam down", soft_wrap=True)


def down(store: StoreOption = DEFAULT_STORE) -> None:
    """Stop what `qalam up` started, and nothing else."""
    from al_qalam.flows.serving.stack import Stack

    stopped = Stack(store).stop()
    out.print(
        f"stopped: {', '.join(stopped)}" if stopped else f"nothing of {store.resolve()} is running", soft_wrap=True
    )


def deploy(
    recipe: RecipeArgument = "demo",
    store: StoreOption = DEFAULT_STORE,
    training: Annotated[
        str, typer.Option(metavar="DEPLOYMENT", help="What trains: train_model/train, in the pool qalam-gpu.")
    ] = "",
    slots: Slots = 1,
    notify: Notify = "",
) -> None:
    """Put work pools, limits, deployments and automations on the server of $PREFECT_API_URL (idempotent)."""
    _server()
    _deploy(recipe, store, training, slots, notify)


def watch(
    folder: Annotated[Path, typer.Argument(help="A folder that text is put into.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose corpus it is.")] = "demo",
    store: StoreOption = DEFAULT_STORE,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two scans.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Scan once: for a timer of your own.")] = False,
) -> None:
    """Send an event that a corpus has new text, whenever files in FOLDER changed and are complete."""
    _server()
    from al_qalam.flows.serving.watch import watch as scan

    name = Recipe.load(recipe_path(recipe)).name
    out.print(f"watching {folder} for {name}, every {every:g} s", soft_wrap=True)
    for changed in scan(folder, Store(store), name, every, once):
        out.print(
            f"{len(changed)} changed: {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}", soft_wrap=True
        )


def _server() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise QalamError(
            "PREFECT_API_URL is not set; export the server's address, http://127.0.0.1:4200/api after `qalam up`"
        )
    for name, value in CALLER.items():
        os.environ.setdefault(name, value)


def _deploy(recipe: str, store: Path, training: str, slots: int, notify: str) -> None:
    for name, value in CALLER.items():
        os.environ.setdefault(name, value)
    # takes seconds, and reads its settings from the environment
    from al_qalam.flows.serving.deploy import deploy as deploy_to_server

    for line in asyncio.run(deploy_to_server(recipe, store, training, slots, notify)):
        out.print(line, soft_wrap=True)
