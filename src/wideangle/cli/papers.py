"""`wideangle papers`: run the claims of a paper here and see which hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from wideangle.cli import _output
from wideangle.cli._common import STOPPED, JsonOption, OutOption, SeedOption, command_line

app = typer.Typer(
    help="List the papers, run the claims of one, or check that what should hold does.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
SlugArgument = Annotated[str, typer.Argument(help="Which paper; `wideangle papers list` shows them.")]
SizeOption = Annotated[str, typer.Option("--size", help="smoke (seconds), cpu (minutes) or paper.")]


def _frame() -> Any:
    from wideangle import papers

    return papers


@app.command("list")
def show_all() -> None:
    """List the papers that can be run."""
    _output.pairs(list(_frame().available().items()))


@app.command("run")
def run_one(
    ctx: typer.Context,
    slug: SlugArgument,
    size: SizeOption = "smoke",
    out: OutOption = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
) -> None:
    """Run the claims of one paper: what it says, what was measured, whether it holds."""
    result = _run(ctx, slug, size, _output.Outputs(out, json).check(), seed)
    if not result.complete:
        raise typer.Exit(STOPPED)


@app.command("check")
def check_one(
    ctx: typer.Context,
    slug: SlugArgument,
    size: SizeOption = "smoke",
    out: OutOption = None,
    json: JsonOption = None,
    seed: SeedOption = 0,
) -> None:
    """Run the claims of one paper; exit 1 where one that should hold here does not."""
    result = _run(ctx, slug, size, _output.Outputs(out, json).check(), seed)
    if not result.complete:
        raise typer.Exit(STOPPED)
    broken = [claim.name for claim in result.claims if claim.expected and claim.verdict == "not reproduced"]
    if broken:
        typer.echo(f"expected to hold and did not: {', '.join(broken)}", err=True)
        raise typer.Exit(1)


def _run(ctx: typer.Context, slug: str, size: str, outputs: _output.Outputs, seed: int) -> Any:
    result = _frame().run(slug, size=size, seed=seed, on_claim=_claim)
    origin = replace(result.provenance, command=command_line(ctx))
    result = replace(result, provenance=origin)
    claims = result.claims
    counts = [
        (name, sum(claim.verdict == name for claim in claims))
        for name in ("holds", "not reproduced", "skipped")
    ]
    _output.heading(", ".join(f"{count} {name}" for name, count in counts))
    _output.verdict(result)
    _output.files(outputs.write(result))
    return result


def _claim(claim: Any) -> None:
    from wideangle.report import _numbers

    known = ", as known" if (claim.verdict, claim.expected) == ("not reproduced", False) else ""
    _output.heading(f"{claim.name}: {claim.verdict}{known}")
    rows = [
        ("paper", claim.paper),
        ("measured", claim.measured),
        ("note", claim.detail),
        ("seeds", ", ".join(map(str, claim.seeds))),
    ]
    _output.pairs([(name, _numbers.show(value)) for name, value in rows if value is not None and str(value)])
