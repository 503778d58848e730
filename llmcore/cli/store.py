"""Commands about a store and the machine it is reached from: export, gc, doctor."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from llmcore.cli.options import DEFAULT_STORE, JsonOption, RefArgument, StoreOption, existing_store
from llmcore.cli.output import print_json, print_table
from llmcore.errors import LlmcoreError, UsageError

commands = typer.Typer()


@commands.command(rich_help_panel="Store and machine")
def export(
    ref: RefArgument,
    folder: Annotated[Path, typer.Argument(help="a new or empty one")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write an artifact as ordinary files; a model as the folder that transformers, vLLM and llama.cpp load."""
    from llmcore.artifacts.index import resolve_ref
    from llmcore.release.run_page import export_model

    opened = existing_store(store)
    export_model(opened, resolve_ref(opened, ref), folder)
    print(folder)


@commands.command(rich_help_panel="Store and machine")
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it only show")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="hours; younger objects may belong to a run under way")] = 24,
    forget: Annotated[str | None, typer.Option(metavar="NAME", help="first drop this ref; needs --yes")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show (and with --yes delete) what no ref and no run under way reaches."""
    from llmcore.artifacts import roots
    from llmcore.artifacts.gc import collect, garbage

    opened = existing_store(store)
    if forget is not None:
        if not yes:
            raise UsageError(f"--forget {forget}: a dropped ref does not come back; say --yes too")
        roots.drop_ref(opened, forget)
    age = timedelta(hours=older_than)
    found = list(collect(opened, age)) if yes else garbage(opened, age)
    total = sum(entry.bytes for entry in found)
    rows = [{"name": entry.name, "bytes": entry.bytes} for entry in found]
    if as_json:
        print_json({"deleted": yes, "bytes": total, "objects": rows})
    else:
        print_table(["name", "bytes"], rows)
    if not as_json:
        verb = "deleted" if yes else "unreachable (delete with --yes)"
        print(f"{len(found)} objects, {total / 1e6:.1f} MB {verb}")


@commands.command(rich_help_panel="Store and machine")
def doctor(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Say what this machine can do."""
    from llmcore.planning.doctor import examine

    rows = [finding.plain() for finding in examine(store)]
    print_json(rows) if as_json else print_table(["what", "state", "detail"], rows)
    if any(row["state"] == "broken" for row in rows):
        raise LlmcoreError("something this machine needs is broken; see the table")
