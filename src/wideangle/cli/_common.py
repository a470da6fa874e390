"""What all verbs share: the options, how errors end the program, the command as it was typed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from wideangle.errors import InputError, WideangleError

if TYPE_CHECKING:
    from wideangle.data import Dataset

BAD_INPUT, STOPPED = 2, 130
_TYPED = "wideangle.typed"

DataOption = Annotated[str, typer.Option("--data", help="Name of a data set, a file, or module.py:function.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Write the report here (.html or .md).")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Root of every random stream.")]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", help="The part of a tuple (0, 1, ...) or dict (its key) that holds the logits."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, ...")]


class Guarded(TyperGroup):
    """A group of verbs whose expected errors end in one line and exit code 2, Ctrl-C in 130."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Keep what was typed, for the reports that quote it."""
        typed = list(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[_TYPED] = typed
        return context

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; turn the library's own errors into a message."""
        try:
            return super().invoke(ctx)
        except WideangleError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
            raise typer.Exit(STOPPED) from None


def command_line(context: typer.Context) -> str:
    """The command as it was typed, quoted so that a shell repeats it."""
    return shlex.join(["wideangle", *context.meta[_TYPED]])


def warn(text: str) -> None:
    """A warning on standard error."""
    typer.echo(f"warning: {text}", err=True)


def check_device(name: str) -> str:
    """The device, once it is known to be there."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; use cpu, cuda, cuda:1 or mps") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"the device {name!r} is not available here; `wideangle doctor` lists those that are"
        ) from error
    return name


def output_pick(text: str | None) -> int | str | None:
    """What --output names: a place in a tuple where it is a number, a key else."""
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def load_data(name: str, n: int | None, seed: int, default: int | None = None) -> Dataset:
    """The data, n samples of it; with no number named `default`, or all where there are fewer."""
    from wideangle import data

    if n is not None and n < 1:
        raise InputError(f"--n is {n}; take at least 1 sample")
    if n is not None or default is None:
        return data.load(name, n=n, seed=seed)
    try:
        return data.load(name, n=default, seed=seed)
    except InputError:
        whole = data.load(name, seed=seed)
        if len(whole) > default:
            raise
        return whole
