"""The commands for unattended builds: up, down, deploy, watch; and serve, for a model."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from al_qalam.flows.cli.options import RecipeArgument, StoreOption
from al_qalam.flows.cli.terminal import err, out
from al_qalam.flows.recipes import recipe_path
from al_qalam.flows.serving.prefect_env import CALLER
from qalam_core.errors import QalamError
from qalam_core.object_store import store_at
from qalam_core.recipe import Recipe
from qalam_core.store import DEFAULT_STORE

Notify = Annotated[
    str,
    typer.Option(
        envvar="QALAM_NOTIFY", metavar="TARGET", show_default=False, show_envvar=True,
        help="Where to report refusals, champions and crashes: a webhook's URL, or a Prefect block's TYPE/NAME.",
    ),
]  # fmt: skip
Slots = Annotated[
    int | None,
    typer.Option(
        min=1, show_default="unchanged, at first 1", help="Trainings at once on the server: one for each GPU."
    ),
]


def up(
    recipe: RecipeArgument = "demo",
    store: StoreOption = DEFAULT_STORE,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, show_default="as before, at first 4200", help="Port of the server, on 127.0.0.1."
        ),
    ] = None,
    notify: Notify = "",
) -> None:
    """Start what does not run of a local stack: a Prefect server, the deployments of a recipe, and one worker."""
    from al_qalam.flows.serving.stack import Stack

    name = Recipe.load(recipe_path(recipe)).name  # reports an error before anything is started
    home = store_at(store)
    home.ensure_writable()
    os.environ.setdefault("PREFECT_HOME", str(home.root / "server"))
    stack = Stack(home.root)

    def ready(api: str) -> None:
        out.print(f"server       {api.removesuffix('/api')} ({states['server']})", soft_wrap=True)
        os.environ["PREFECT_API_URL"] = api
        _deploy(recipe, store, "", None, notify, states["server"] == "restarted")

    with stack.alone(), out.status("starting the server; a first start takes half a minute"):
        states = stack.states()
        api = stack.start(port, "qalam-cpu", 2, ready)
    out.print(f"worker       local, for qalam-cpu, two runs at once ({states['worker']})")
    run = f"prefect deployment run build_model/nightly-build-{name}"
    out.print(f"\nstart a run: PREFECT_API_URL={api} {run}", soft_wrap=True)
    out.print(f"web page:    {api.removesuffix('/api')}/deployments", soft_wrap=True)
    out.print("stop:        qalam down", soft_wrap=True)


def down(store: StoreOption = DEFAULT_STORE) -> None:
    """Stop the server and the worker that `qalam up` started, and no other process."""
    from al_qalam.flows.serving.stack import Stack

    home = store_at(store)
    stopped = Stack(home.root).stop()
    out.print(f"stopped: {', '.join(stopped)}" if stopped else f"nothing to stop in {home.place}", soft_wrap=True)


def deploy(
    recipe: RecipeArgument = "demo",
    store: StoreOption = DEFAULT_STORE,
    training: Annotated[
        str, typer.Option(metavar="DEPLOYMENT", help="Train in this deployment: train_model/train, in qalam-gpu.")
    ] = "",
    slots: Slots = None,
    notify: Notify = "",
) -> None:
    """Create or update work pools, limits, deployments and automations on the server of $PREFECT_API_URL."""
    _server()
    _deploy(recipe, store, training, slots, notify)


def watch(
    folder: Annotated[Path, typer.Argument(help="The folder that text files are added to.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose corpus is in the folder.")] = "demo",
    store: StoreOption = DEFAULT_STORE,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two scans.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Scan once and exit, for use with a timer.")] = False,
) -> None:
    """Send an event that starts a build when files in FOLDER have changed and are complete."""
    _server()
    from al_qalam.flows.serving.watch import watch as scan

    parsed = Recipe.load(recipe_path(recipe))
    out.print(f"watching {folder} for {parsed.name}, every {every:g} s", soft_wrap=True)

    def warn(problem: str) -> None:
        err.print(f"warning: {problem}", soft_wrap=True)

    for changed in scan(folder, store_at(store), parsed, every, warn, once):
        out.print(
            f"{len(changed)} changed: {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}", soft_wrap=True
        )


def serve(
    model: Annotated[str, typer.Argument(help="A package folder, a run id, or a name whose champion is followed.")],
    store: StoreOption = DEFAULT_STORE,
    backend: Annotated[
        Literal["numpy", "torch", "cuda"], typer.Option(help="What computes: numpy, torch, or torch on a GPU.")
    ] = "numpy",
    host: Annotated[str, typer.Option(help="Address to listen on; others need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    token: Annotated[
        str,
        typer.Option(envvar="QALAM_SERVE_TOKEN", show_envvar=True, help="Clients must send it as a bearer token."),
    ] = "",
    places: Annotated[int, typer.Option(min=1, max=1024, help="Texts that are generated at the same time.")] = 32,
    waiting: Annotated[int, typer.Option(min=0, help="Texts that may wait for a place.")] = 128,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one answer, at most.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of one request, at most.")] = 1 << 20,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for one answer.")] = 300.0,
) -> None:
    """Serve a model over HTTP, with the API of OpenAI's completions."""
    from al_qalam.flows.serving.completions import Limits
    from al_qalam.flows.serving.models import Backend
    from al_qalam.flows.serving.server import run

    limits = Limits(max_body, max_tokens, places, seconds)
    run(model, store, Backend(backend), host, port, token, places, waiting, limits, out.print)


def _server() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise QalamError(
            "PREFECT_API_URL is not set; export the server's address, http://127.0.0.1:4200/api after `qalam up`"
        )
    for name, value in CALLER.items():
        os.environ.setdefault(name, value)


def _deploy(recipe: str, store: str, training: str, slots: int | None, notify: str, restarted: bool = False) -> None:
    for name, value in CALLER.items():
        os.environ.setdefault(name, value)
    # takes seconds, and reads the settings above
    from al_qalam.flows.serving.deploy import deploy as deploy_to_server

    # at the end it would report the events about saved blocks that Prefect is still sending
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)

    for line in asyncio.run(deploy_to_server(recipe, store_at(store).place, training, slots, notify, restarted)):
        out.print(line, soft_wrap=True)
