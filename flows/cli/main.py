"""The command line `qalam`: all commands, in groups, in the order in which a new user needs them.
Exit status: 0 success; 1 the gate refused, something differs, or training failed; 2 an error that the user can correct,
as one line on standard error.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.text import Text

from al_qalam.flows.cli import (
    blame,
    build,
    corpus,
    find,
    git,
    packages,
    propose,
    review,
    runs,
    seeds,
    serving,
    testing,
)
from al_qalam.flows.cli.terminal import err, out
from qalam_core.display import printable
from qalam_core.errors import QalamError, TrainingError
from qalam_core.files import disk_problem

GROUPS: dict[str, dict[str, tuple[Callable[..., Any], str]]] = {
    "Build": {
        "init": (build.init, "qalam init my.toml --corpus 'texts/*.txt' --size small"),
        "plan": (build.plan, "qalam plan my.toml --set train.steps=200"),
        "build": (build.build, "qalam build my.toml --set train.steps=200"),
        "forget": (build.forget, "qalam forget my.toml --exclude texts_to_forget.txt"),
        "seeds": (seeds.seeds, "qalam seeds my.toml -n 5"),
        "reproduce": (runs.reproduce, "qalam reproduce demo-0123456789ab"),
        "gc": (runs.gc, "qalam gc --keep 5 --delete"),
    },
    "Look": {
        "runs": (runs.runs, "qalam runs"),
        "report": (runs.report, "qalam report demo-0123456789ab --open"),
        "review": (review.review, "qalam review demo-0123456789ab demo-ba9876543210 --html review.html"),
        "lineage": (runs.lineage, "qalam lineage demo-0123456789ab --json"),
        "corpus": (corpus.corpus, "qalam corpus --rejects min_words --count 3"),
        "trace": (find.trace, "qalam trace demo-0123456789ab 'قال رسول الله صلى الله عليه وسلم'"),
        "find": (find.find, "qalam find @letter.txt"),
        "blame": (blame.blame, "qalam blame demo-0123456789ab embedding.weight --row قال"),
        "show": (packages.show, "qalam show .qalam/runs/demo-0123456789ab/model embedding.weight --row قال"),
        "test": (testing.run_tests, "qalam test demo-0123456789ab my_cases.jsonl --junit results.xml"),
        "generate": (packages.generate, "qalam generate demo-0123456789ab قال --tokens 20 --seed 1"),
    },
    "Champions": {
        "propose": (propose.propose, "qalam propose my_model --why 'the row of قال, scaled by 1.5'"),
        "history": (runs.history, "qalam history demo"),
        "promote": (runs.promote, "qalam promote demo-0123456789ab --why 'better on poetry'"),
        "rollback": (runs.rollback, "qalam rollback demo --why 'wrong dates in the news'"),
    },
    "Package": {
        "verify": (packages.verify, "qalam verify my_model --strict"),
        "edit": (packages.edit, "qalam edit my_model --row قال --scale 1.5"),
        "diff": (packages.diff, "qalam diff demo-0123456789ab my_model --prompt قال"),
        "seal": (packages.seal, "qalam seal my_model --note 'scaled the row of قال by 1.5'"),
        "merge": (git.merge, "qalam merge base ours theirs --out united"),
        "git": (git.git, "qalam git install"),
        "export": (packages.export, "qalam export demo-0123456789ab small_model --dtype q8"),
        "import": (packages.import_, "qalam import old_model my_model --from original"),
        "wheel": (packages.wheel, "qalam wheel my_model --name my_model"),
        "sign": (packages.sign, "qalam sign my_model --key key.pem"),
    },
    "Serve and deploy": {
        "serve": (serving.serve, "qalam serve demo --port 8000"),
        "up": (serving.up, "qalam up demo"),
        "down": (serving.down, "qalam down"),
        "deploy": (serving.deploy, "qalam deploy my.toml --notify https://example.org/hook"),
        "watch": (serving.watch, "qalam watch texts --recipe my.toml"),
    },
}
"""Group -> command -> (function, example)."""


def _version(requested: bool) -> None:
    if requested:
        out.print(f"qalam {metadata.version('al-qalam')}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    epilog="`qalam COMMAND --help` shows the options of a command and an example.",
)  # fmt: skip


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn an Arabic corpus into a language model that can be reviewed like code."""


for group, commands in GROUPS.items():
    for name, (function, example) in commands.items():
        app.command(name, rich_help_panel=group, epilog=f"Example: {escape(example)}")(function)


def main() -> None:
    """Entry point of the console script: print a QalamError, or an error of the disk, as one line; any other exception
    has its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an encoding without Arabic letters, such as ASCII
    try:
        app()
    except QalamError as error:
        _fail(str(error), 1 if isinstance(error, TrainingError) else 2)
    except OSError as error:
        if not (problem := disk_problem(error)):
            raise
        _fail(problem, 2)


def _fail(message: str, status: int) -> NoReturn:
    err.print(Text.assemble(("error:", "red"), f" {printable(message)}"), soft_wrap=True)
    sys.exit(status)
