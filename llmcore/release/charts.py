"""Pictures drawn as SVG by hand: no font, script or file from elsewhere, the same bytes each time.

They stand inside a page that has `STYLE`, as the report does; `standalone` makes one of them a picture of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import polars as pl

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 36, 44
POINTS = 400  # of the training loss that are drawn
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 150, 46, 22, 34
BINS = 24  # of a histogram, at most

STYLE = """
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1c2430; }
.grid { stroke: #e3e7ec; } text.tick { font-size: 12px; fill: #5b6675; } text.axis { font-size: 12px; fill: #8b95a3; }
polyline { fill: none; stroke-linejoin: round; } .raw { stroke: #b9d0ea; stroke-width: 1.2; }
.train { stroke: #2563a8; stroke-width: 2; }
polyline.held, line.held { stroke: #c2621b; stroke-width: 1.6; stroke-dasharray: 4 3; } circle.held { fill: #c2621b; }
rect.bar { fill: #2563a8; }
.box rect { fill: #fff; stroke: #c4ccd6; } .box.last rect { fill: #2563a8; stroke: #2563a8; }
.box.last text { fill: #fff !important; }
text.name { font-size: 13px; font-weight: 600; }
svg text.mono { font: 10.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #5b6675; }
.edge { fill: none; stroke: #b4bec9; stroke-width: 1.2; }
"""


def standalone(svg: str) -> str:
    """A picture that needs no page around it (an image file, a data URI): with its namespace, style and ground."""
    head, _, body = svg.partition(">")
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{ground}{body}'


def loss_curve(history: pl.DataFrame) -> str:
    """Training loss (each step, and smoothed) and validation loss against tokens seen, in nats per token.

    history: columns tokens, loss, validation_loss (null where none was measured). "" for an empty history.
    """
    measured = history.drop_nulls("loss").filter(pl.col("loss").is_finite())
    if measured.height < 2:
        return ""
    held_out = history.drop_nulls("validation_loss").filter(pl.col("validation_loss").is_finite())
    smooth = measured.select("tokens", pl.col("loss").ewm_mean(half_life=max(1.0, measured.height / 60)))
    values = [*measured["loss"], *held_out["validation_loss"]]
    low, high, y_ticks = _scale(min(values), max(values))
    last = max(float(measured["tokens"].max() or 1), float(held_out["tokens"].max() or 1))  # type: ignore[arg-type]
    _, _, x_ticks = _scale(0.0, last)

    def x(tokens: float) -> float:
        return LEFT + tokens / last * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def line(frame: pl.DataFrame, column: str) -> str:
        stride = -(-frame.height // POINTS)
        thinned = frame.with_row_index().filter((pl.col("index") % stride == 0) | (pl.col("index") == frame.height - 1))
        return " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in thinned.select("tokens", column).iter_rows())

    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in y_ticks]
    parts += [f'<text class="tick" x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>' for t in y_ticks]
    parts += [
        f'<text class="tick" x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(t)}</text>'
        for t in x_ticks
        if t <= last
    ]
    parts += [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">tokens seen</text>',
        f'<text class="axis" transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="14" '
        'text-anchor="middle">loss, nats per token</text>',
        *_legend(bool(held_out.height)),
        f'<polyline class="raw" points="{line(measured, "loss")}"/>',
        f'<polyline class="train" points="{line(smooth, "loss")}"/>',
    ]
    if held_out.height:
        parts.append(f'<polyline class="held" points="{line(held_out, "validation_loss")}"/>')
        parts += [
            f'<circle class="held" cx="{x(t):.1f}" cy="{y(v):.1f}" r="3.5">'
            f"<title>{short(t)} tokens: {v:.4f}</title></circle>"
            for t, v in held_out.select("tokens", "validation_loss").iter_rows()
        ]
    return _svg(WIDTH, HEIGHT, "Training and validation loss", parts)


def histogram(counts: Sequence[tuple[float, int]], unit: str, what: str) -> str:
    """Bars over powers of two: how many of `what` are at least so long and less than twice that. "" without any.

    counts: (lower end of the bar in `unit`, number) in rising order, without gaps.
    """
    if not counts:
        return ""
    shown = counts[-BINS:]
    _, high, y_ticks = _scale(0.0, max(number for _, number in shown))
    width = (WIDTH - LEFT - RIGHT) / len(shown)

    def y(number: float) -> float:
        return TOP + (high - number) / high * (HEIGHT - TOP - BOTTOM)

    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in y_ticks]
    parts += [
        f'<text class="tick" x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{short(t)}</text>' for t in y_ticks
    ]
    for place, (low, number) in enumerate(shown):
        x = LEFT + place * width
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{y(number):.1f}" width="{width - 2:.1f}" '
            f'height="{HEIGHT - BOTTOM - y(number):.1f}"><title>{short(low)} to {short(2 * low)} {escape(unit)}: '
            f"{number:,} {escape(what)}</title></rect>"
        )
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(low)}</text>'
        )
    parts += [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
        f'text-anchor="middle">{escape(unit)}</text>',
        f'<text class="axis" transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="14" '
        f'text-anchor="middle">{escape(what)}</text>',
    ]
    return _svg(WIDTH, HEIGHT, f"{what.capitalize()} by length", parts)


def lineage_graph(nodes: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, str]]) -> str:
    """The chain of artifacts, sources on top: a box each (step, digest, rows), a line for each input.

    Layered as Sugiyama et al. 1981: longest path gives the layer, long edges get a place in every layer that they
    cross, and a few barycentre sweeps order the layers.
    """
    names = [str(node["id"]) for node in nodes] + ["published"]
    pairs = sorted({(edge["from"], edge["to"]) for edge in edges if edge["from"] in names and edge["to"] in names})
    layer = _layers(names, pairs)
    layers: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]
    for name in names:
        layers[layer[name]].append(name)
    links: dict[tuple[str, str], None] = {}
    for source, target in pairs:
        stop = source
        for level in range(layer[source] + 1, layer[target]):
            passing = f"{source}>{level}"  # one place a layer, however many edges of this source pass through it
            if passing not in layers[level]:
                layers[level].append(passing)
            links[stop, passing] = None
            stop = passing
        links[stop, target] = None
    _order(layers, list(links))

    boxes = set(names)
    place, total = _places(layers, boxes)
    height = len(layers) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 4
    parts = [_link(place[upper], place[lower], passing=lower not in boxes) for upper, lower in links]
    facts = {str(node["id"]): node for node in nodes}
    parts += [_box(name, facts.get(name), *place[name]) for name in names]
    return _svg(total, height, "Lineage of the model", parts)


def short(number: float) -> str:
    """1234567 -> "1.23M"."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">\n' + "\n".join(parts) + "\n</svg>"
    )


def _legend(held_out: bool) -> list[str]:
    entries = [("train", "training, smoothed"), ("raw", "training, each step")]
    entries += [("held", "validation")] if held_out else []
    parts = []
    for place, (kind, words) in enumerate(entries):
        x = LEFT + 170 * place
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x + 22}" y1="14" y2="14"/>')
        parts.append(f'<text class="tick" x="{x + 30}" y="18">{words}</text>')
    return parts


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round ends and about five round ticks that hold the range."""
    span = max(high - low, 1e-6)
    step = 10 ** math.floor(math.log10(span / 5))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, last * step, [round(number * step, 10) for number in range(first, last + 1)]


def _layers(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Layer of each name: one below its lowest input; what has no input sits just above what it feeds."""
    parents: dict[str, list[str]] = {name: [] for name in names}
    for source, target in pairs:
        parents[target].append(source)
    layer: dict[str, int] = {}
    for name in names:  # inputs come before what they feed
        layer[name] = max((layer[parent] + 1 for parent in parents[name] if parent in layer), default=0)
    for name in names:
        children = [layer[target] for source, target in pairs if source == name]
        if not parents[name] and children:
            layer[name] = min(children) - 1
    return layer


def _order(layers: list[list[str]], links: Sequence[tuple[str, str]]) -> None:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for upper, lower in links:
        above.setdefault(lower, []).append(upper)
        below.setdefault(upper, []).append(lower)
    for sweep in range(8):
        downward = sweep % 2 == 0
        for level in range(1, len(layers)) if downward else range(len(layers) - 2, -1, -1):
            fixed = layers[level - 1] if downward else layers[level + 1]
            spots = {name: (number + 0.5) / len(fixed) for number, name in enumerate(fixed)}
            neighbours = above if downward else below
            current = {name: (number + 0.5) / len(layers[level]) for number, name in enumerate(layers[level])}

            def centre(
                name: str,
                near: Mapping[str, list[str]] = neighbours,
                spots: Mapping[str, float] = spots,
                current: Mapping[str, float] = current,
            ) -> float:
                found = [spots[other] for other in near.get(name, ())]
                return sum(found) / len(found) if found else current[name]

            layers[level].sort(key=centre)


def _places(layers: Sequence[Sequence[str]], boxes: set[str]) -> tuple[dict[str, tuple[float, float]], float]:
    """Centre of each place, each layer centred; a passing edge takes less room than a box."""
    rooms = [[BOX_WIDTH if name in boxes else 18 for name in layer] for layer in layers]
    widths = [sum(room) + GAP_X * (len(room) - 1) for room in rooms]
    total = max(widths) + 4
    place = {}
    for level, (layer, room) in enumerate(zip(layers, rooms, strict=True)):
        x = (total - widths[level]) / 2
        for name, size in zip(layer, room, strict=True):
            place[name] = (x + size / 2, 2 + level * (BOX_HEIGHT + GAP_Y) + BOX_HEIGHT / 2)
            x += size + GAP_X
    return place, total


def _link(upper: tuple[float, float], lower: tuple[float, float], passing: bool) -> str:
    """From the foot of one place to the head of the next, and through it where an edge only passes."""
    (x0, y0), (x1, y1), bend = upper, lower, GAP_Y / 2
    start, end = y0 + BOX_HEIGHT / 2, y1 - BOX_HEIGHT / 2
    path = f"M{x0:.1f},{start:.1f} C{x0:.1f},{start + bend:.1f} {x1:.1f},{end - bend:.1f} {x1:.1f},{end:.1f}"
    return f'<path class="edge" d="{path}{f" V{end + BOX_HEIGHT:.1f}" if passing else ""}"/>'


def _box(name: str, node: Mapping[str, Any] | None, x: float, y: float) -> str:
    if node is None:
        title, detail, kind = "published model", "this folder", "box last"
        hover = "the folder that this report describes"
    else:
        kept = [output["rows"] for name, output in node["outputs"].items() if name.startswith("kept/")]
        size = short(sum(output["bytes"] for output in node["outputs"].values())) + "B"
        title, kind = str(node["step"]), "box"
        detail = f"{node['digest'][:8]} · " + (f"{short(sum(kept))} docs" if kept else size)
        hover = f"{node['stage']} v{node['version']}\nkey {node['key']}\ndigest {node['digest']}"
    title = title if len(title) <= 20 else title[:19] + "…"
    left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
    return (
        f'<g class="{kind}"><title>{escape(hover)}</title>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7"/>'
        f'<text class="name" x="{x:.1f}" y="{y - 3:.1f}" text-anchor="middle">{escape(title)}</text>'
        f'<text class="mono" x="{x:.1f}" y="{y + 13:.1f}" text-anchor="middle">{escape(detail)}</text></g>'
    )
