"""`wideangle train`: act on a plan, and compare what was predicted with what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wideangle.cli import _output
from wideangle.cli._common import (
    STOPPED,
    DeviceOption,
    JsonOption,
    OutOption,
    OutputOption,
    check_device,
    command_line,
    load_data,
    output_pick,
    warn,
)
from wideangle.errors import InputError

if TYPE_CHECKING:
    from wideangle.plan import Plan


def act(
    ctx: typer.Context,
    target: Annotated[
        str | None, typer.Argument(help="mlp, conv, resnet, or module.py:factory; the plan's where left out.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="The data; the plan's where left out.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="The plan a check-up wrote.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps; the plan's stop rule else.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Samples; as many as the plan saw else.")] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="Keep the state here.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    out: OutOption = None,
    json: JsonOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Root of every random stream; the plan's else.")
    ] = None,
    device: DeviceOption = "cpu",
    output: OutputOption = None,
) -> None:
    """Train TARGET as the plan says and report predicted against measured."""
    outputs = _output.Outputs(out, json).check()
    place = check_device(device)
    if resume and checkpoint is None:
        raise InputError("--resume needs --checkpoint FILE, the state to go on from")
    scheme = _read(plan)
    model_name, data_name = target or scheme.model, data or scheme.data
    _compare(scheme, model_name, data_name)
    from wideangle import training
    from wideangle.cli._target import build

    root = scheme.seed if seed is None else seed
    if root != scheme.seed:
        warn(
            f"the plan was made with seed {scheme.seed}, this is seed {root}: other samples and other weights, so "
            "its predicted loss is that of a model of the same kind"
        )
    dataset = load_data(data_name, scheme.samples if n is None else n, root)
    model = build(model_name, dataset, root)
    facts = f"{len(dataset)} samples, loss {scheme.loss}, seed {root}, {place}"
    typer.echo(f"Training of {model_name} on {data_name}: {facts}")
    result = training.train(
        model,
        dataset.x,
        dataset.y,
        scheme,
        steps=steps,
        checkpoint=checkpoint,
        resume=resume,
        seed=root,
        device=place,
        output=output_pick(output),
        command=command_line(ctx),
        name=model_name,
        data=data_name,
    )
    for part in result.sections:
        _output.section(part)
    _output.verdict(result)
    _output.files(outputs.write(result))
    if not result.complete:
        typer.echo("stopped before the end; what is above was measured", err=True)
        raise typer.Exit(STOPPED)


def _read(path: Path | None) -> Plan:
    from wideangle.plan import Plan

    if path is None:
        raise InputError(
            "training acts on a plan: write one with `wideangle checkup TARGET --data D --plan plan.json` "
            "and pass --plan plan.json"
        )
    return Plan.load(path)


def _compare(plan: Plan, model: str, data: str) -> None:
    for what, planned, given in (("model", plan.model, model), ("data", plan.data, data)):
        if not given:
            raise InputError(f"the plan does not say which {what} it was made for; name it")
        if planned and planned != given:
            warn(
                f"the plan was made for the {what} {planned!r}, not {given!r}; "
                "its step size and its predicted loss need not hold"
            )
