"""Variants of a network side by side: speed-ups, shares, memory, as JSON and as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from networks import VARIANTS

from dwconv.bench.limits import geometric_mean

# A converted network and what it is compared with, under the name of their speed-up.
PAIRS = {
    "converted": ("stock", "converted"),
    "compiled": ("stock_compiled", "converted_compiled"),
}
FREE_GAIN = 1.1  # where stock takes this many times as long as free, the way is long enough
SHARE = 0.8  # of the way from stock to free that a converted network is asked to come
SLOWER = 1.01  # a converted network is slower than stock if it takes this many times as long


@dataclass(frozen=True)
class Comparison:
    """What was measured of one network in one dtype and layout, by variant."""

    model: str
    dtype: str
    layout: str
    step_ms: dict[str, float]
    busy_ms: dict[str, float]  # of the GPU
    peak_mib: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.model} {self.dtype} {self.layout}"

    def speedup(self, pair: str) -> float | None:
        return _ratio(self.step_ms, *PAIRS[pair])

    def memory(self, pair: str) -> float | None:
        """Ours over PyTorch's."""
        stock, ours = PAIRS[pair]
        return _ratio(self.peak_mib, ours, stock)

    def slower(self, pair: str) -> bool:
        speedup = self.speedup(pair)
        return speedup is not None and speedup * SLOWER < 1

    def needs_more_memory(self, pair: str) -> bool:
        memory = self.memory(pair)
        return memory is not None and memory > 1

    @property
    def gain(self) -> float | None:
        """The speed-up of layers that cost nothing."""
        return _ratio(self.step_ms, "stock", "free")

    @property
    def share(self) -> float | None:
        """Of the way from stock to free, where it is long enough to be measured."""
        return _share(self.step_ms)

    @property
    def share_of_gpu(self) -> float | None:
        """The same of the time that the GPU is busy: what kernels can change."""
        return _share(self.busy_ms)


def _share(times: dict[str, float]) -> float | None:
    gain = _ratio(times, "stock", "free")
    if gain is None or gain < FREE_GAIN or "converted" not in times:
        return None
    stock, ours, free = (times[v] for v in ("stock", "converted", "free"))
    return (stock - ours) / (stock - free)


def _ratio(values: dict[str, float], above: str, below: str) -> float | None:
    return values[above] / values[below] if above in values and below in values else None


def compare(records: Iterable[dict[str, Any]]) -> list[Comparison]:
    """One for each network, dtype and layout, in the order of their first record."""
    found: dict[tuple[str, str, str], Comparison] = {}
    for record in records:
        key = record["model"], record["dtype"], record["layout"]
        comparison = found.setdefault(key, Comparison(*key, {}, {}, {}))
        if record["error"] is None:
            for name in ("step_ms", "busy_ms", "peak_mib"):
                if record[name] is not None:  # on the CPU
                    getattr(comparison, name)[record["variant"]] = record[name]
    return list(found.values())


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    comparisons = compare(records)
    panels: dict[tuple[str, str], list[Comparison]] = {}
    for c in comparisons:
        panels.setdefault((c.dtype, c.layout), []).append(c)
    return {
        "panels": [
            {"dtype": dtype, "layout": layout, **_means(part)}
            for (dtype, layout), part in panels.items()
        ],
        "all": _means(comparisons),
        **shortfalls(comparisons),
        "speedup": {p: _rounded((c.name, c.speedup(p)) for c in comparisons) for p in PAIRS},
        "speedup_of_free": _rounded((c.name, c.gain) for c in comparisons),
        "share": _rounded((c.name, c.share) for c in comparisons),
        "share_of_gpu": _rounded((c.name, c.share_of_gpu) for c in comparisons),
        "memory": {p: _rounded((c.name, c.memory(p)) for c in comparisons) for p in PAIRS},
    }


def shortfalls(comparisons: Sequence[Comparison]) -> dict[str, list[str]]:
    """Where a converted network does not do what is asked of it."""
    both = [(c, pair) for pair in PAIRS for c in comparisons]
    return {
        "below_share": [c.name for c in comparisons if c.share is not None and c.share < SHARE],
        "slower": [f"{c.name} {pair}" for c, pair in both if c.slower(pair)],
        "more_memory": [f"{c.name} {pair}" for c, pair in both if c.needs_more_memory(pair)],
    }


def _rounded(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Those that were measured."""
    return {name: round(value, 4) for name, value in values if value is not None}


def _means(comparisons: Sequence[Comparison]) -> dict[str, float | None]:
    """Geometric ones; of shares, which may be negative, the least."""
    columns = {
        **{f"speedup_{pair}": [c.speedup(pair) for c in comparisons] for pair in PAIRS},
        "speedup_free": [c.gain for c in comparisons],
    }
    shares = [c.share for c in comparisons if c.share is not None]
    means = {name: geometric_mean(v for v in values if v) for name, values in columns.items()}
    return {
        **{name: mean and round(mean, 4) for name, mean in means.items()},
        "least_share": round(min(shares), 4) if shares else None,
    }


def table(records: Iterable[dict[str, Any]]) -> str:
    comparisons = compare(records)
    width = max([len("network"), *(len(c.name) for c in comparisons)]) + 2
    heads = [*VARIANTS, "speed-up", "compiled", "of free", "share", "of GPU", "memory"]
    widths = [max(9, len(head) + 2) for head in heads]

    def line(first: str, cells: Iterable[str]) -> str:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{first:<{width}}{''.join(padded)}"

    lines = [
        "Milliseconds a step; speed-ups over stock; the share of the way to free, also of the time "
        "that the GPU is busy; memory of converted over stock's.",
        line("network", heads),
    ]
    for c in comparisons:
        ratios = (c.speedup("converted"), c.speedup("compiled"), c.gain, c.share, c.share_of_gpu)
        cells = [_cell(c.step_ms.get(variant), 1) for variant in VARIANTS]
        cells += [_cell(ratio, 3) for ratio in (*ratios, c.memory("converted"))]
        lines.append(line(c.name, cells))
    for what, names in shortfalls(comparisons).items():
        lines.append(f"{what}: {', '.join(names) or 'none'}")
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
