"""What `plan` shows: steps with their time, the training, and devices."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from llmcore.cli.output import print_json, print_table

if TYPE_CHECKING:  # importing every stage's parameters takes a second
    from llmcore.planning.config import PipelineConfig


def show_plan(asked: PipelineConfig, until: str | None, as_json: bool) -> None:
    """Print what running a configuration would do, and for how long. UsageError where it cannot work."""
    from llmcore.artifacts.store import open_store
    from llmcore.planning.checks import must_work
    from llmcore.planning.cost import too_wide, training_cost
    from llmcore.planning.forecast import forecast, in_words
    from llmcore.planning.heads import chain_on_head
    from llmcore.planning.plan import plan_chain

    warnings = must_work(asked)
    opened = open_store(asked.store)
    chain = chain_on_head(opened, asked)[0]
    asked_for = {step.name for step in chain.until(until)}
    planned = [row for row in plan_chain(opened, chain) if row.step in asked_for]
    cost = training_cost(opened, asked, chain, {row.step: row.ref for row in planned if row.ref is not None})
    if not any(line.startswith("pack.window") for line in warnings):
        warnings += too_wide(asked, cost)
    expected = forecast(opened, asked, chain, planned, cost)
    rows = [row.plain() | expected[row.step].plain() for row in planned]
    total = sum(found.seconds or 0 for found in expected.values())
    if as_json:
        print_json({"steps": rows, "seconds": round(total, 1), "training": cost, "warnings": warnings})
        return
    for row in rows:
        row["time"] = "" if row["state"] == "cached" else in_words(row["seconds"])
    print_table(["step", "state", "time", "why"], rows)
    print(f"\nabout {in_words(total)} on this machine\n")
    devices = cost.pop("devices")
    print_table(["training", "value"], [{"training": name, "value": _plain(value)} for name, value in cost.items()])
    print()
    print_table(["device", "tokens/s", "hours", "dollars", "from"], [_device(row) for row in devices])
    warn(warnings)


def _device(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "device": row["device"],
        "tokens/s": _span(row["tokens_per_second"]),
        "hours": _span(row["hours"]),
        "dollars": _span(row["dollars"]) if "dollars" in row else "",
        "from": row["from"],
    }


def _plain(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def _span(values: list[float]) -> str:
    low, high = (f"{value:,}" for value in values)
    return low if low == high else f"{low} to {high}"


def warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
