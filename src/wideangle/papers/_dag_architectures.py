"""The claims of `dag` about which architectures become linear with width."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from wideangle.document import Table
from wideangle.nets import DAG, ConvNet, ResNet
from wideangle.papers import _dag_nets as nets
from wideangle.papers._dag_nets import FALLS, HEADS, STAYS, Row, draws, draws_of
from wideangle.papers._descents import few_seeds
from wideangle.papers._frame import Finding, Setting
from wideangle.papers._samples import unit

RULE = f"a transition is a slope under {FALLS}, none is one within {STAYS} of 0"


def finding(
    setting: Setting, rows: list[Row], holds: bool, title: str, detail: str = "", headline: str = ""
) -> Finding:
    """Return the finding on some rows, the first the claim's own and the others beside it."""
    kept = [
        [f"{name}, another implementation", None, None, None, None, slope, None, None]
        for name, slope in nets.KEPT.items()
        if name == rows[0].name
    ]
    return Finding(
        holds,
        "; ".join(row.text() for row in rows),
        f"{detail}{'; ' if detail else ''}{RULE}{few_seeds(setting)}",
        draws_of(setting),
        figures=[nets.figure(rows, title, "Hessian norm of the output")],
        tables=[Table(title, HEADS, [*(row.cells() for row in rows), *kept])],
        headline=headline,
    )


def _row(setting: Setting, name: str) -> Row:
    return Row(name, nets.row_scaling(setting, name))


def _one_row(name: str, falls: bool, beside: str) -> Callable[[Setting], Finding]:
    """Return the test of one row of the table, with another row beside it as its control."""

    def test(setting: Setting) -> Finding:
        row, control = _row(setting, name), _row(setting, beside)
        holds = (row.falls and control.stays) if falls else (row.stays and control.falls)
        expected = (
            "falls with m, and the control beside it stays" if falls else "stays, and the control falls"
        )
        return finding(
            setting, [row, control], holds, f"Hessian norm of {name}", f"holds where it {expected}"
        )

    return test


fully_connected = _one_row("[m, m]", True, "[m, 4, m]")
densely_connected = _one_row("[m, m, m], dense", True, "[m, 4, m]")
narrow_layer = _one_row("[m, 4, m]", False, "[m, m]")
narrow_with_skips = _one_row("[m, 4, m], dense skips", True, "[m, 4, m]")
random_graph = _one_row("random, in-degree m", True, "[m, 4, m]")
uneven_graph = _one_row("random, in-degree m to m^1.5", True, "[m, 4, m]")
narrow_first = _one_row("[4, m]", False, "[m, m]")
narrow_output = _one_row("[m, 4]", False, "[m, m]")
one_thin_neuron = _one_row("[m, m], one neuron of in-degree 2", True, "[m, 4, m]")


def width_as_printed(setting: Setting) -> Finding:
    """The width without the outputs, as the display of the submission has it, grows in [m, 4] too."""
    rows = [_row(setting, "[m, 4]"), _row(setting, "[m, m]")]
    cells = []
    for m in (16, 256):
        net = nets.narrow_last(m, setting.seed)
        hidden = [d for v, d in net.in_degrees().items() if v in set(net.layers()[2])]
        cells.append([m, min(hidden), net.width()])
    found = finding(setting, rows, rows[0].falls, "Hessian norm of [m, 4]")
    table = Table("Width of [m, 4]", ["m", "without the output, as printed", "with the output"], cells)
    return Finding(
        found.holds,
        f"{found.measured}; width of [m, 4] at m = 256: {cells[1][1]} as printed, {cells[1][2]} with the output",
        f"holds where the net whose printed width grows is a transition; {RULE}",
        found.seeds,
        found.figures,
        [*found.tables, table],
    )


def small_width_forbids(setting: Setting) -> Finding:
    """The converse: a net whose smallest in-degree stays small does not become linear."""
    name = "[m, m], one neuron of in-degree 2"
    rows = [_row(setting, name), _row(setting, "[m, 4, m]")]
    detail = "holds where a net of constant width 2 is no transition; a vanishing share of thin neurons does no harm"
    return finding(setting, rows, rows[0].stays, "Constant width, one thin neuron or a thin layer", detail)


def thin_everywhere(setting: Setting) -> Finding:
    """Hidden neurons of in-degree 4 throughout, chosen at random, and an output that sees all of them."""
    x = nets.inputs(setting.seed)
    name = "random, in-degree 4, wide output"
    columns = nets.widths(setting, "[m, m]")
    found = nets.scaling(setting, name, nets.thin_everywhere, columns, lambda net: nets.norm(net, x))
    rows = [Row(name, found), _row(setting, "[4, m]"), _row(setting, "[m, m]")]
    detail = (
        "beyond the theorem, whose width is 4 here: holds where it is no transition. The neurons of [4, m] share "
        "four predecessors, these have different ones"
    )
    return finding(setting, rows, rows[0].stays, "In-degree 4 throughout", detail)


def width_decides(setting: Setting) -> Finding:
    """Theorem 3.6 over the whole table: every net whose width grows with m is a transition."""
    cells, rows, right, thin = [], [], True, 0
    for name, (factory, grows) in nets.ROWS.items():
        row, columns = _row(setting, name), nets.widths(setting, name)
        ends = [factory(m, setting.seed).width() for m in (columns[0], columns[-1])]
        growing = ends[1] > 2 * ends[0]
        assert growing is grows, name
        right &= row.falls if growing else True
        thin += row.stays and not growing
        verdict = "transition" if row.falls else "none" if row.stays else "unclear"
        cells.append([name, *ends, row.found.slope, verdict, nets.KEPT.get(name)])
        rows.append(row)
    heads = ["net", "width at the smallest m", "at the largest", "slope", "verdict", "slope elsewhere"]
    counted = sum(grows for _, grows in nets.ROWS.values())
    measured = f"{counted} nets whose width grows: {(right and 'all') or 'not all'} are transitions"
    return Finding(
        right and thin >= 2,
        f"{measured}; of {len(rows) - counted} whose width stays {thin} are none",
        f"holds where all of the former are and, as a control, at least two of the latter are none; {RULE}"
        + few_seeds(setting),
        draws_of(setting),
        figures=[nets.figure(rows, "Hessian norm against m", "Hessian norm of the output")],
        tables=[Table("Width and transition", heads, cells)],
        headline=f"A large minimum in-degree is enough: {measured}.",
    )


def _images(setting: Setting) -> Tensor:
    return unit(setting.load("digits", 50).x)[:1].reshape(1, 1, 8, 8) * 8


def _image_net(kind: type[ConvNet] | type[ResNet], **options: object) -> Callable[[int, int], nn.Module]:
    def factory(channels: int, seed: int) -> nn.Module:
        made = kind((1, 8, 8), 1, width=channels, activation="tanh", generator=draws(seed), **options)  # type: ignore[arg-type]
        return made.double()

    return factory


def _on_images(
    setting: Setting, families: dict[str, Callable[[int, int], nn.Module]], grows: list[str]
) -> Finding:
    many = setting.at_least(8)
    x, columns = _images(setting), [8, 16, 32, 64, 128][: setting.pick(3, 4, 5)]
    rows, cells = [], []
    for name, factory in families.items():
        rows.append(
            Row(name, nets.scaling(setting, name, factory, columns, lambda net: nets.norm(net, x), many))
        )
        ends = [DAG.from_module(factory(m, 0), x) for m in (columns[0], columns[-1])]
        cells.append([name, *(graph.width for graph in ends), ends[1].narrowest, rows[-1].found.slope])
    holds = all(row.falls if row.name in grows else row.stays for row in rows)
    found = finding(setting, rows, holds, "Hessian norm against channels, one digit")
    heads = ["net", "width at the fewest channels", "at the most", "narrowest layer", "slope"]
    return Finding(
        holds,
        found.measured,
        "holds where those whose width grows fall and the others stay; width: smallest in-degree of the neurons "
        f"as DAG.from_module reads them; {RULE}{few_seeds(setting)}",
        found.seeds,
        found.figures,
        [*found.tables, Table("Widths read from the modules", heads, cells)],
    )


def convolutional(setting: Setting) -> Finding:
    """A convolutional net becomes linear with its channels, and one with a single channel in the middle not."""
    families = {
        "convolutions": _image_net(ConvNet, depth=3),
        "one channel in the middle": _image_net(ConvNet, depth=3, bottleneck=1),
    }
    return _on_images(setting, families, ["convolutions"])


def residual(setting: Setting) -> Finding:
    """Appendix D: identity skip connections, unweighted, do no harm."""
    families = {
        "residual": _image_net(ResNet, depth=2),
        "plain, one channel in the middle": _image_net(ConvNet, depth=3, bottleneck=1),
    }
    return _on_images(setting, families, ["residual"])


def digits(setting: Setting) -> Finding:
    """A random graph on 64 pixels of real digits, beside a narrow layer."""
    x = _images(setting).flatten(1)
    columns = [8, 32, 128] if setting.size == "smoke" else [8, 16, 32, 64, 128, 256]
    families: dict[str, nets.Factory] = {
        "random on digits": lambda m, seed: nets.random(m, seed, 64),
        "[m, 4, m] on digits": lambda m, seed: nets.narrow(m, seed, 64),
    }
    rows = [
        Row(name, nets.scaling(setting, name, factory, columns, lambda net: nets.norm(net, x)))
        for name, factory in families.items()
    ]
    holds = rows[0].falls and rows[1].stays
    return finding(
        setting,
        rows,
        holds,
        "Hessian norm on a digit",
        headline=f"On digits too: {'; '.join(row.text() for row in rows)}.",
    )


def deep(setting: Setting) -> Finding:
    """The number of layers is fixed and need not be small: five layers of a random graph fall too."""
    x = nets.inputs(setting.seed)

    def factory(m: int, seed: int) -> DAG:
        return DAG.random(10, 1, layers=(256,) * 5, in_degree=m, generator=draws(seed)).double()

    columns = nets.few_widths(setting)
    found = nets.scaling(setting, "random, five layers", factory, columns, lambda net: nets.norm(net, x))
    rows = [Row("random, five layers", found), _row(setting, "[m, 4, m]")]
    depth = len(factory(8, setting.seed).layers()) - 1
    assert depth == 6
    return finding(setting, rows, rows[0].falls and rows[1].stays, "Five hidden layers at random")
