"""`wideangle checkup`: measure how a model will train on its data, and write the plan."""

from __future__ import annotations

from dataclasses import replace
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
    OutputOption,
    SeedOption,
    check_device,
    command_line,
    load_data,
    output_pick,
    warn,
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
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", help="Samples a step; the plan then takes the optimiser for it."),
    ] = None,
    out: OutOption = None,
    json: JsonOption = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Write the plan here.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    output: OutputOption = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show how the kernel would be computed, layer by layer; run nothing."),
    ] = False,
) -> None:
    """Measure how TARGET will train on the data; print the verdict and write report, numbers and plan."""
    outputs = _output.Outputs(out, json, plan).check()
    place = check_device(device)
    from wideangle import checks
    from wideangle.cli._target import build

    dataset = load_data(data, n, seed, default=SAMPLES)
    model = build(target, dataset, seed)
    if explain:
        from wideangle import kernel

        typer.echo(kernel.explain(model.to(place).eval(), dataset.x, output=output_pick(output)))
        return
    typer.echo(f"Check-up of {target} on {data}: {len(dataset)} samples, loss {loss}, seed {seed}, {place}")
    result = checks.checkup(
        model,
        dataset.x,
        dataset.y,
        loss=loss,
        only=only or None,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        device=place,
        output=output_pick(output),
        command=command_line(ctx),
        data=data,
        name=target,
        on_section=_output.section,
    )
    _output.verdict(result)
    decided = result.plan is not None and bool(result.plan.decided)
    if result.plan is not None and decided:
        _output.plan_table(result.plan)
    if plan is not None and not decided and result.complete:
        warn(
            "no plan is written: the sections that decide something (step-size, labels, optimiser) were left out "
            "or failed"
        )
    _output.files((outputs if decided else replace(outputs, plan=None)).write(result))
    if not result.complete:
        typer.echo("stopped before the end; what is above was measured", err=True)
        raise typer.Exit(STOPPED)
    if plan is not None and result.plan is not None and decided:
        from wideangle.report import _tables

        after = _tables.next_command(result.plan, command_line(ctx))
        if after:
            _output.heading("Next")
            typer.echo(f"  {after}")
