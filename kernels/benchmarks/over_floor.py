"""What each way to `lora_conv3d` costs over the frozen convolution, measured and counted: the table behind a plot.

Counts are PyTorch's own (`FlopCounterMode`), taken from the calls that a form really makes, on the meta device: shapes
go through, nothing is computed. Multiplications and additions inside convolutions and matrix products count; what is
done once for each voxel (a sum, a scaling, a copy) does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import torch
from harness import Result
from shapes import Layer
from torch.utils.flop_counter import FlopCounterMode

from medseqft_kernels.lora_conv3d.backends import BACKENDS
from medseqft_kernels.lora_conv3d.forms import Geometry
from medseqft_kernels.lora_conv3d.reference import reference

MEASURED, COUNTED = "time, measured", "operations, counted"
SYMBOLS = {
    "triton": ("#882255", "cross"),
    "concatenated-products": ("#CC79A7", "diamond"),
    "concatenated-convolution": ("#E69F00", "circle"),
    "merged-products": ("#009E73", "triangle-down"),
    "merged-mixed": ("#997700", "pentagon"),
    "merged-convolution": ("#56B4E9", "triangle-up"),
    "merged-projected": ("#0072B2", "square"),
    "peft": ("#D55E00", "x"),
    "auto": ("#24292f", "star"),
}
"""From the bottom of a layer's points to the top; colours of Okabe and Ito, who chose them for all kinds of eyes."""


def over_floor(results: Sequence[Result], layers: Mapping[str, Layer], rank: int) -> pd.DataFrame:
    """One row for each layer, form and quantity, as multiples of the frozen convolution.

    Parameters
    ----------
    results
        Of :func:`harness.run_row`, one dtype and format; those without a time are left out.
    layers
        The layers that were timed, by the name that they have in the plan.
    rank
        Of the adapter in `results`.

    Returns
    -------
    pandas.DataFrame
        ``layer``, ``form``, ``quantity`` (`MEASURED` or `COUNTED`), ``times`` the frozen convolution, and how far the
        20 % and 80 % quantiles lie ``below`` and ``above`` (0 for a count). The frozen convolution itself is 1, and
        not in the table.
    """
    found = []
    for name, layer in layers.items():
        timed = {each.provider: each for each in results if each.shape == f"{name} r{rank}" and each.median}
        floor = timed.pop("frozen").median if "frozen" in timed else None
        for form, each in timed.items() if floor else ():
            low, mid, high = (value / floor for value in (each.p20, each.median, each.p80))
            found.append((layer.name, form, MEASURED, mid, mid - low, high - mid))
        found += [(layer.name, form, COUNTED, times, 0.0, 0.0) for form, times in counted(layer, rank).items()]
    return pd.DataFrame(found, columns=["layer", "form", "quantity", "times", "below", "above"])


def dots(table: pd.DataFrame) -> go.Figure:
    """Draw the table of :func:`over_floor`: one panel for each quantity, one line of points for each layer."""
    names = table["layer"].unique()
    figure = px.scatter(
        table,
        x="times",
        y="layer",
        error_x="above",
        error_x_minus="below",
        color="form",
        symbol="form",
        facet_col="quantity",
        facet_col_spacing=0.05,
        color_discrete_map={form: colour for form, (colour, _) in SYMBOLS.items()},
        symbol_map={form: symbol for form, (_, symbol) in SYMBOLS.items()},
        category_orders={"layer": names, "form": list(SYMBOLS), "quantity": [MEASURED, COUNTED]},
        labels={"times": "multiples of the frozen convolution", "layer": ""},
        template="plotly_white",
        height=140 + 80 * len(names),
    )
    figure.for_each_annotation(lambda each: each.update(text=each.text.removeprefix("quantity=")))
    figure.update_traces(orientation="h", marker_size=9, error_x={"thickness": 1, "width": 0})
    figure.update_layout(scattermode="group", scattergap=0.25, legend={"title": "", "traceorder": "reversed"})
    figure.update_xaxes(rangemode="tozero")
    return figure.add_vline(1, line_dash="dot", line_color="grey")


def counted(layer: Layer, rank: int) -> dict[str, float]:
    """Operations of a forward and a backward pass (gradients of x, A and B) over 2·F, by provider's name."""
    passes = _passes(layer, rank)
    return {name: operations(run) / (2 * layer.operations) for name, run in passes.items()}


def operations(run: Callable[[], object]) -> int:
    """Multiplications and additions of a call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _passes(layer: Layer, rank: int) -> dict[str, Callable[[], object]]:
    empty = partial(torch.empty, device="meta")
    x = empty(1, layer.inputs, *layer.size, requires_grad=True)
    weight = empty(layer.outputs, layer.inputs, *layer.kernel)
    a = empty(rank, layer.inputs, *layer.kernel, requires_grad=True)
    b = empty(layer.outputs, rank, 1, 1, 1, requires_grad=True)
    g = empty(1, layer.outputs, *layer.places)
    walk = Geometry(layer.stride, layer.padding, (1, 1, 1))

    def peft() -> None:
        y = reference(x, weight, None, a, b, 1.0, **walk._asdict())
        torch.autograd.grad(y, (x, a, b), g)

    @torch.no_grad()
    def form(name: str) -> None:
        tensors: list[Any] = [each.detach() for each in (x, weight, a, b)]
        y, u = BACKENDS[name].forward(*tensors[:2], None, *tensors[2:], 1.0, walk)
        BACKENDS[name].backward(torch.empty_like(y), *tensors, u, 1.0, walk, True, True)

    forms = [name for name in BACKENDS if name != "triton"]  # a kernel makes no calls that could be counted
    return {"peft": peft, **{name: partial(form, name) for name in forms}}
