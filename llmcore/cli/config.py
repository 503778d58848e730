"""Commands about the configuration file: init, config, schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmcore.cli.options import ConfigArgument, JsonOption
from llmcore.cli.output import print_json, print_table
from llmcore.cli.planned import warn

commands = typer.Typer()


@commands.command(rich_help_panel="Configure")
def config(path: ConfigArgument = None, as_json: JsonOption = False) -> None:
    """Print the quickstart's configuration, to start your own from; or check one, and print it whole as JSON."""
    from llmcore.planning.checks import must_work
    from llmcore.planning.config import load, quickstart_text

    if path is None and not as_json:
        print(quickstart_text(), end="")
        return
    asked = load(path)
    warn(must_work(asked))
    print(asked.model_dump_json() if as_json else f"{path}: good, builds {asked.name}")


@commands.command(rich_help_panel="Configure")
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="print tables of keys, defaults and meanings")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors; or every key of it as a page to read."""
    from llmcore.planning.config import PipelineConfig
    from llmcore.planning.reference import configuration_tables

    print(configuration_tables(), end="") if markdown else print_json(PipelineConfig.model_json_schema())


@commands.command(rich_help_panel="Configure")
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
