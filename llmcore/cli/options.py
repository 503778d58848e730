"""Arguments and options that several commands take, and how the shell completes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcore.errors import LlmcoreError, UsageError

if TYPE_CHECKING:  # importing every stage's parameters takes a second, which `llmcore ls` need not wait for
    from llmcore.artifacts.store import Store
    from llmcore.planning.config import PipelineConfig

DEFAULT_STORE = "file://~/.llmcore/store"
# in the order of the chain; a test holds them to it
STAGES = (
    "crawl",
    "collect",
    "ingest",
    "extract",
    "clean",
    "site_lines",
    "trim",
    "language",
    "pii",
    "signatures",
    "resolve",
    "dedup",
    "signals",
    "classifier",
    "quality",
    "benchmarks",
    "decontaminate",
    "split",
    "versions",
    "tokenizer",
    "tokenise",
    "pack",
    "train",
    "evaluate",
    "quantise",
    "publish",
)
NAMED = f"a stage: {', '.join(STAGES)}; or a step, such as 'ingest notes'"


def complete_stage(incomplete: str) -> list[str]:
    return [stage for stage in STAGES if stage.startswith(incomplete)]


def complete_ref(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Names in the store that the line so far means; none where it cannot be read."""
    from llmcore.artifacts import roots

    with suppress(LlmcoreError):
        store = existing_store(context.params.get("store") or DEFAULT_STORE)
        yield from (ref.name for ref in roots.refs(store) if ref.name.startswith(incomplete))


ConfigArgument = Annotated[Path | None, typer.Argument(help="YAML configuration; none: the embedded quickstart")]
RefArgument = Annotated[
    str, typer.Argument(help="a name, or the start of a key or digest (`llmcore ls`)", autocompletion=complete_ref)
]
StageArgument = Annotated[str | None, typer.Argument(help=f"only of {NAMED}", autocompletion=complete_stage)]
StageOption = Annotated[str | None, typer.Option("--stage", help=f"only of {NAMED}", autocompletion=complete_stage)]
SourceOption = Annotated[str | None, typer.Option("--source", help="only of this source")]
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


def existing_store(uri: str) -> Store:
    """The store of that URI. UsageError if there is none: whoever looks at one has to have made it, or mistyped."""
    from llmcore.artifacts.store import ROOMS, open_store

    opened = open_store(uri)
    if all(next(iter(opened.backend.entries(f"{room}/")), None) is None for room in ROOMS):
        raise UsageError(
            f"no store at {opened.uri}; name one with --store or LLMCORE_STORE (a run of llmcore makes one)"
        )
    return opened
