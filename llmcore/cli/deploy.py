"""The command that makes Prefect deployments of one's own configuration: deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmcore.cli.options import JsonOption
from llmcore.cli.output import print_json, print_table
from llmcore.cli.run import _flow

commands = typer.Typer()


@commands.command(rich_help_panel="Make")
def deploy(
    config: Annotated[Path | None, typer.Argument(help="YAML configuration; each run reads it when it begins")] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="CRON", help="refresh the dataset then, e.g. '17 3 * * *'; none: as it is")
    ] = None,
    timezone: Annotated[str, typer.Option(help="of the schedule")] = "UTC",
    pool: Annotated[str, typer.Option(help="work pool; made, for processes, if there is none")] = "llmcore",
    listing: Annotated[bool, typer.Option("--list", help="only show what is deployed")] = False,
    removing: Annotated[bool, typer.Option("--remove", help="delete the file's deployments")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make pipeline, dataset, refresh, pretrain and release deployments that follow a configuration file."""
    rows: list[dict[str, Any]] = _flow("deploy")(config, cron, timezone, pool, listing, removing)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), rows)
    else:
        print("nothing is deployed; `llmcore deploy CONFIG` does it")
