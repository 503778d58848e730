"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # importing every stage's parameters takes a second, which `llmcore ls` need not wait for
    from llmcore.planning.config import PipelineConfig

DEFAULT_STORE = "file://~/.llmcore/store"
ConfigArgument = Annotated[Path | None, typer.Argument(help="YAML configuration; none: the embedded quickstart")]
StoreOption = Annotated[str, typer.Option("--store", envvar="LLMCORE_STORE", help="store URI")]
StoreInsteadOption = Annotated[
    str | None, typer.Option("--store", envvar="LLMCORE_STORE", help="instead of the configuration's")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


def settings(path: Path | None, store: str | None) -> PipelineConfig:
    """The configuration in a file (none: the quickstart's), with another store if one is given; raises as `load`."""
    from llmcore.planning.config import load

    config = load(path)
    return config if store is None else config.model_copy(update={"store": store})
