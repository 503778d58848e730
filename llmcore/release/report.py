"""report.html: one page about one model, which opens from the disk, without a server, a script or a network.

Everything on it is escaped by the template engine; a content security policy forbids whatever slips through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmcore.release import charts
from llmcore.release.card import interval, number, signed, size, view
from llmcore.release.facts import Facts

REASONS_SHOWN = 40


def page_environment() -> Environment:
    """Where the pages' templates are: everything is escaped, and what a template asks for must be there."""
    return Environment(
        loader=PackageLoader("llmcore.release"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def report(facts: Facts) -> str:
    """The page as HTML."""
    environment = page_environment()
    environment.filters |= {
        "number": number,
        "signed": signed,
        "size": size,
        "interval": interval,
        "short": charts.short,
    }
    return environment.get_template("report.html.j2").render(
        **view(facts),
        chart_style=Markup(charts.STYLE),
        loss=Markup(charts.loss_curve(facts.history)),
        lengths=Markup(charts.histogram(facts.lengths, "tokens in a document", "documents")),
        lineage=Markup(charts.lineage_graph(facts.nodes, facts.edges)),
        bars=score_bars(facts.scores),
        stages=funnel_bars(facts),
        reasons=facts.funnel.dropped[:REASONS_SHOWN],
    )


def score_bars(scores: Sequence[Any]) -> list[dict[str, Any]]:
    """Test scores as horizontal bars: lengths and interval ends in per cent of the longest."""
    rows = [(row, row["splits"].get("test")) for row in scores]
    longest = max((score["high"] or score["value"] for _, score in rows if score), default=1.0)
    bars = []
    for row, score in rows:
        if not score:
            continue
        low, high = (score[end] if score[end] is not None else score["value"] for end in ("low", "high"))
        bars.append(
            {
                "name": row["name"],
                "ours": row["key"] == "model",
                "text": interval(score),
                "width": round(100 * score["value"] / longest, 2),
                "low": round(100 * low / longest, 2),
                "spread": round(100 * (high - low) / longest, 2),
            }
        )
    return bars


def funnel_bars(facts: Facts) -> list[dict[str, Any]]:
    """Stages as bars of documents kept and removed, in per cent of the largest."""
    most = max((door.read for door in facts.funnel.passages), default=1) or 1
    return [
        {
            "door": door,
            "kept": round(100 * door.kept / most, 2),
            "dropped": round(100 * door.dropped / most, 2),
        }
        for door in facts.funnel.passages
    ]
