"""Commands about the configuration file and what it means: init, config, schema, plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llmcore.cli.options import ConfigArgument, JsonOption, StoreInsteadOption, settings
from llmcore.cli.output import print_json, print_table

commands = typer.Typer()


@commands.command()
def init(
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="files and folders of your text")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write; by default NAME.yaml")] = None,
    name: Annotated[str, typer.Option(help="of the model; by default the first path's")] = "",
    minutes: Annotated[float, typer.Option(min=0.1, help="that the training may take on this machine")] = 10.0,
    force: Annotated[bool, typer.Option("--force", help="write over a file that is there")] = False,
    store: Annotated[str, typer.Option(help="URI to write into it; by default none, which is the default store")] = "",
) -> None:
    """Look at your files and write a configuration that fits them and this machine, with its reasons as comments."""
    from llmcore.planning.init import draft, forecast_of, write

    def tell(said: str) -> None:
        print(said, file=sys.stderr)

    made = draft(paths, name, minutes, tell=tell)
    path = write(made, output, force, store)
    rows = [
        {
            "source": source.name,
            "kind": source.kind,
            "files": source.files,
            "bytes": source.bytes,
            "text after filters": f"{source.text / 1e6:.2f} MB",
            "languages": " ".join(f"{code} {share:.0%}" for code, share in list(source.languages.items())[:4]),
            "licence": source.licence,
        }
        for source in made.found
    ]
    print_table(list(rows[0]), rows)
    for left in made.left:
        print(f"left out: {left.files:,} files ({left.what}): {left.advice}")
    print(f"\n{forecast_of(made, path)}\n\nwrote {path}; next: llmcore plan {path}, llmcore run {path}")


@commands.command()
def config(path: ConfigArgument = None, as_json: JsonOption = False) -> None:
    """Print the quickstart's configuration, to start your own from; or check one, and print it whole as JSON."""
    from llmcore.planning.checks import must_work
    from llmcore.planning.config import load, quickstart_text

    if path is None and not as_json:
        print(quickstart_text(), end="")
        return
    asked = load(path)
    _warn(must_work(asked))
    print(asked.model_dump_json() if as_json else f"{path}: good, builds {asked.name}")


@commands.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="print tables of keys, defaults and meanings")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors; or every key of it as a page to read."""
    from llmcore.planning.config import PipelineConfig
    from llmcore.planning.reference import configuration_tables

    print(configuration_tables(), end="") if markdown else print_json(PipelineConfig.model_json_schema())


@commands.command()
def plan(
    config: ConfigArgument = None,
    until: Annotated[str | None, typer.Option(help="stop after this stage")] = None,
    store: StoreInsteadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say stage by stage what is cached, what would run, why and for how long, and what the training costs."""
    from llmcore.artifacts.store import open_store
    from llmcore.planning.checks import must_work
    from llmcore.planning.cost import too_wide, training_cost
    from llmcore.planning.forecast import forecast, in_words
    from llmcore.planning.heads import chain_on_head
    from llmcore.planning.plan import plan_chain

    asked = settings(config, store)
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
    _warn(warnings)


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


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
