"""Figures of the report, drawn with matplotlib and returned as images that an HTML page can hold."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.tables import Row
from eval.tissue import Tissue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour-blindness can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
SPLIT_NAMES = {"given": "given folds", "random": "random split", "loso": "leave one study out"}
GREY = "#666666"
COLOUR_MAP = "viridis"


def strips(rows: Sequence[Row]) -> str:
    """PCC of every gene: a strip of points an encoder and split, with the mean as a bar."""
    figure = _figure(9, 0.9 + 0.55 * len(rows))
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    colours = encoder_colours(rows)
    for i, row in enumerate(reversed(rows)):
        values = _gene_values(row, "pcc")
        axes.scatter(
            values, i + rng.uniform(-0.25, 0.25, len(values)), s=9, alpha=0.45, lw=0, color=colours[row["encoder"]]
        )
        axes.plot([row["pcc"]["mean"]] * 2, [i - 0.36, i + 0.36], color="black", lw=2)
    axes.set_yticks(range(len(rows)), [_label(row) for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_xlabel("Pearson correlation of a gene, mean over folds (bar: mean over genes)")
    return _svg(figure)


def against_expression(rows: Sequence[Row]) -> str:
    """PCC of every gene against its mean and its variance of log1p counts, one colour an encoder."""
    figure = _figure(9, 3.8)
    colours = encoder_colours(rows)
    for panel, fact in enumerate(("mean", "variance")):
        axes = figure.add_subplot(1, 2, panel + 1)
        for row in rows:
            scored = [g for g in row["genes"] if g["pcc"] is not None]
            x, y = [g[fact] for g in scored], [g["pcc"]["mean"] for g in scored]
            axes.scatter(x, y, s=12, alpha=0.5, lw=0, color=colours[row["encoder"]], label=_short(row["encoder"]))
        axes.set_xlabel(f"{fact} of log1p counts")
        axes.axhline(0, color=GREY, lw=0.8)
        if panel == 0:
            axes.set_ylabel(f"PCC ({SPLIT_NAMES[rows[0]['split']]})")
            figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return _svg(figure)


def drop_plot(rows: Sequence[Row]) -> str:
    """Mean PCC from the random split to leave-one-study-out, a line an encoder with its relative drop; mean ± std."""
    figure = _figure(7.5, 4)
    axes = figure.add_subplot()
    colours = encoder_colours(rows)
    pairs = {r["encoder"]: {s["split"]: s for s in rows if s["encoder"] == r["encoder"]} for r in rows}
    both = {name: found for name, found in pairs.items() if {"random", "loso"} <= found.keys()}
    ends = _spaced({name: found["loso"]["pcc"]["mean"] for name, found in both.items()})
    for i, (name, found) in enumerate(both.items()):
        y = [found[s]["pcc"]["mean"] for s in ("random", "loso")]
        x = np.array([0.0, 1.0]) + (i - (len(both) - 1) / 2) * 0.02
        error = [found[s]["pcc"]["std"] for s in ("random", "loso")]
        axes.errorbar(x, y, error, color=colours[name], marker="o", lw=2, capsize=3, elinewidth=1)
        change = f"{100 * (y[1] - y[0]) / y[0]:+.0f}%" if y[0] else "-"
        axes.annotate(f"{_short(name)}  {change}", (1.06, ends[name]), color=colours[name], va="center", fontsize=9)
    axes.set_xticks([0, 1], ["random split", "leave one study out"])
    axes.set_xlim(-0.15, 1.9)
    axes.set_ylabel("PCC, mean ± std over folds")
    return _svg(figure)


def slide_maps(genes: Sequence[str], samples: Mapping[str, Mapping[str, NDArray]], tissue: Mapping[str, Tissue]) -> str:
    """A row a gene; for each sample its tissue, measured and predicted expression, which share a scale and its bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = _figure(2.3 * 3 * len(samples), 2.2 * len(genes))
    grid = figure.add_gridspec(len(genes), 3 * len(samples))
    for column, (name, arrays) in enumerate(samples.items()):
        for row, gene in enumerate(genes):
            pair = [arrays[what][:, row] for what in ("measured", "predicted")]
            known = np.isfinite(pair[1])
            r = _correlation(pair[0][known], pair[1][known])
            both = np.concatenate([pair[0], pair[1][known]])
            scale = Normalize(float(both.min()), float(both.max()))
            first, *panels = [figure.add_subplot(grid[row, 3 * column + side]) for side in range(3)]
            left, right, bottom, top = tissue[name].extent
            first.imshow(tissue[name].image, extent=(left, right, bottom, top))
            for axes, values in zip(panels, pair, strict=True):
                _map(axes, arrays["coords"], values, scale)
                axes.set(xlim=(left, right), ylim=(bottom, top))
            titles = (f"{name}: {gene}", "measured", f"predicted, r = {r}")
            for axes, title in zip((first, *panels), titles, strict=True):
                axes.set_title(title, fontsize=9)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            figure.colorbar(ScalarMappable(scale, COLOUR_MAP), ax=panels, shrink=0.7, aspect=25, pad=0.01)
    return _png(figure)


def encoder_colours(rows: Sequence[Row]) -> dict[str, str]:
    """Encoder -> colour, the same in every figure of the rows' task."""
    names = sorted({row["encoder"] for row in rows})
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def _map(axes: "Axes", coords: NDArray, values: NDArray, scale: "Normalize") -> None:
    known = np.isfinite(values)
    size = float(np.clip(2.2e4 / max(len(coords), 1) / 4, 1.5, 30))
    axes.scatter(coords[known, 0], coords[known, 1], c=values[known], s=size, cmap=COLOUR_MAP, norm=scale, lw=0)
    axes.set_aspect("equal")


def _correlation(a: NDArray, b: NDArray) -> str:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return "undefined"
    return f"{np.corrcoef(a, b)[0, 1]:.2f}"


def _spaced(wanted: Mapping[str, float]) -> dict[str, float]:
    """Heights for labels, moved up where they would overlap the one below."""
    if not wanted:
        return {}
    step = 0.05 * (max(wanted.values()) - min(min(wanted.values()), 0) or 1.0)
    placed: dict[str, float] = {}
    last = -np.inf
    for name, value in sorted(wanted.items(), key=lambda item: item[1]):
        last = max(value, last + step)
        placed[name] = float(last)
    return placed


def _gene_values(row: Row, metric: str) -> list[float]:
    return [g[metric]["mean"] for g in row["genes"] if g[metric] is not None]


def _label(row: Row) -> str:
    name = _short(row["encoder"])
    return name if row["split"] == "given" else f"{name} ({row['split']})"


def _short(name: str, most: int = 40) -> str:
    """The end of a long name, which tells encoders of one folder apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure") -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return _uri(figure, "svg", "image/svg+xml", {"Date": None})


def _png(figure: "Figure") -> str:
    return _uri(figure, "png", "image/png", {})


def _uri(figure: "Figure", kind: str, mime: str, metadata: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=110)
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
