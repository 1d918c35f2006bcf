"""The bar chart of training steps: a panel for each dtype and layout, a group for each network."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from comparison import Comparison, compare

LAYOUTS = {"nchw": "contiguous", "nhwc": "channels_last"}
# What each variant is called and painted. PyTorch's are grey, ours blue; compiled ones are darker.
BARS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("stock", {"color": "#c3c7cd"}),
    "converted": ("converted", {"color": "#4a9ae1"}),
    "stock_compiled": ("stock, torch.compile", {"color": "#80868f"}),
    "converted_compiled": ("converted, torch.compile", {"color": "#1b4f8f"}),
    "free": (
        "free: depthwise layers without cost",
        {"facecolor": "white", "edgecolor": "#555555", "hatch": "/////", "linewidth": 0.6},
    ),
}
LABELLED = ("converted", "converted_compiled")
GROUP = 0.86  # of the distance of two groups


def draw(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Step times relative to stock's. Raises ValueError where stock was measured of no network."""
    from matplotlib.figure import Figure  # here, since measuring does without
    from matplotlib.patches import Patch

    comparisons = [c for c in compare(records) if "stock" in c.step_ms]
    if not comparisons:
        raise ValueError("there is no network of which stock was measured, so nothing to draw")
    panels = list(dict.fromkeys((c.dtype, c.layout) for c in comparisons))
    models = list(dict.fromkeys(c.model for c in comparisons))
    figure = Figure(figsize=(9, 1 + 1.7 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        groups = {models.index(c.model): c for c in comparisons if (c.dtype, c.layout) == panel}
        _bars(axes, groups)
        axes.set_title(f"{panel[0]}, {LAYOUTS[panel[1]]}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.set_yticks([0, 0.5, 1])
    highest = max(ms / c.step_ms["stock"] for c in comparisons for ms in c.step_ms.values())
    grid[0].set(xlim=(-0.6, len(models) - 0.4), ylim=(0, highest + 0.25))  # room for the figures
    grid[-1].set_xticks(range(len(models)), [model.replace("_", "\n", 1) for model in models])
    figure.supylabel("time of a training step, stock = 1; figures: speed-up over stock", fontsize=9)
    # Not those of a panel, which may lack a variant.
    handles = [Patch(label=label, **style) for label, style in BARS.values()]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(BARS), frameon=False, fontsize=8.5
    )
    figure.savefig(path, dpi=110)


def _bars(axes: Any, groups: Mapping[int, Comparison]) -> None:
    width = GROUP / len(BARS)
    for i, (variant, (_, style)) in enumerate(BARS.items()):
        shift = (i - (len(BARS) - 1) / 2) * width
        heights = {
            place + shift: c.step_ms[variant] / c.step_ms["stock"]
            for place, c in groups.items()
            if variant in c.step_ms
        }
        axes.bar(list(heights), list(heights.values()), 0.92 * width, **style)
        if variant in LABELLED:
            for place, height in heights.items():
                text = axes.text(place, height + 0.03, f"{1 / height:.2f}", fontsize=7.5)
                text.set(ha="center", va="bottom", rotation=90)
                text.set_bbox({"color": "white", "pad": 0.6})  # over the line of stock
    axes.axhline(1, color="#c3c7cd", linewidth=0.8, zorder=0)
