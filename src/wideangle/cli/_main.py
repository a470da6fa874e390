"""The program: its verbs, its version, and what every error looks like to the user."""

from __future__ import annotations

from typing import Annotated

import typer

from wideangle.cli import checkup, doctor, papers, train
from wideangle.cli._common import Guarded

app = typer.Typer(
    name="wideangle",
    cls=Guarded,
    help="Measure how a network will train, plan from the measurement, act on the plan, verify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("checkup")(checkup.measure)
app.command("train")(train.act)
app.command("doctor")(doctor.diagnose)
app.add_typer(papers.app, name="papers")


def _version(wanted: bool) -> None:
    if wanted:
        from wideangle import __version__

        typer.echo(f"wideangle {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    del version
