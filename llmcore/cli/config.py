"""Commands about the configuration file: config, schema."""

from __future__ import annotations

from typing import Annotated

import typer

from llmcore.cli.options import ConfigArgument, JsonOption
from llmcore.cli.output import print_json

commands = typer.Typer()


@commands.command()
def config(path: ConfigArgument = None, as_json: JsonOption = False) -> None:
    """Print the quickstart's configuration, to start your own from; or check one, and print it whole as JSON."""
    from llmcore.planning.config import load, quickstart_text

    if as_json:
        print(load(path).model_dump_json())
    elif path is None:
        print(quickstart_text(), end="")
    else:
        print(f"{path}: good, builds {load(path).name}")


@commands.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="print tables of keys, defaults and meanings")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors; or every key of it as a page to read."""
    from llmcore.planning.config import PipelineConfig
    from llmcore.planning.reference import configuration_tables

    print(configuration_tables(), end="") if markdown else print_json(PipelineConfig.model_json_schema())
