"""`wideangle checkup`: measure how a model will train on its data, and write the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wideangle.cli import _output
from wideangle.cli._common import (
    STOPPED,
    DataOption,
    DeviceOption,
    JsonOption,
    OutOption,
    SeedOption,
    check_device,
    command_line,
    load_data,
)

SAMPLES = 512


def measure(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="mlp, conv, resnet, or module.py:factory.")] = "mlp",
    data: DataOption = "digits",
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only this section and what it needs; repeatable.")
    ] = None,
    loss: Annotated[str, typer.Option("--loss", help="mse or cross-entropy.")] = "mse",
    n: Annotated[int | None, typer.Option("--n", help=f"Samples; {SAMPLES} where there are so many.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the trial run.")] = None,
    out: OutOption = None,
    json: JsonOption = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Write the plan here.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Measure how TARGET will train on the data; print the verdict and write report, numbers and plan."""
    outputs = _output.Outputs(out, json, plan).check()
    place = check_device(device)
    from wideangle import checks
    from wideangle.cli._target import build

    dataset = load_data(data, n, seed, default=SAMPLES)
    model = build(target, dataset, seed)
    typer.echo(f"Check-up of {target} on {data}: {len(dataset)} samples, loss {loss}, seed {seed}, {place}")
    result = checks.checkup(
        model,
        dataset.x,
        dataset.y,
        loss=loss,
        only=only or None,
        steps=steps,
        seed=seed,
        device=place,
        output=None,
        command=command_line(ctx),
        data=data,
        name=target,
        on_section=_output.section,
    )
    _output.verdict(result)
    if result.plan is not None:
        _output.plan_table(result.plan)
    _output.files(outputs.write(result))
    if not result.complete:
        typer.echo("stopped before the end; what is above was measured", err=True)
        raise typer.Exit(STOPPED)
    if plan is not None and result.plan is not None:
        from wideangle.report import _tables

        after = _tables.next_command(result.plan, command_line(ctx))
        if after:
            _output.heading("Next")
            typer.echo(f"  {after}")
