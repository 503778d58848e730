"""Commands to read what was made and what was left out: funnel, dropped, generate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcore.cli.options import (
    DEFAULT_STORE,
    JsonOption,
    RefArgument,
    SourceOption,
    StageOption,
    StoreOption,
    existing_store,
)
from llmcore.cli.output import print_json, print_table, visible
from llmcore.errors import LlmcoreError

if TYPE_CHECKING:
    from llmcore.account.funnel import FunnelRow

LOOK = "Look"
RULES_SHOWN = 3

commands = typer.Typer()


@commands.command(rich_help_panel=LOOK)
def funnel(
    ref: RefArgument,
    stage: StageOption = None,
    source: SourceOption = None,
    generations: Annotated[bool, typer.Option("--generations", help="snapshot and refreshes each by itself")] = False,
    sizes: Annotated[bool, typer.Option("--bytes", help="measure the texts too, which reads all of them")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Say what came of the documents behind an artifact: read, kept, dropped and by which rules, stage by stage."""
    from llmcore.account.funnel import rows_behind
    from llmcore.artifacts.index import resolve_ref

    opened = existing_store(store)
    rows = [
        row
        for row in rows_behind(opened, resolve_ref(opened, ref), sizes)
        if stage in (None, row.stage, row.stage.split(" ", 1)[0]) and source in (None, row.source)
    ]
    if not rows:
        raise LlmcoreError(
            f"no stage behind {ref} in {store} fits; name a dataset or a model, without --stage, --source"
        )
    if as_json:
        print_json([row.plain() for row in rows])
        return
    columns = ["stage", "source", *(["generation"] if generations else []), "read", "kept", "dropped", "share"]
    columns += ["bytes read", "bytes kept"] if sizes else []
    print_table([*columns, "by"], (_line(part) for part in _together(rows, generations)))


def _together(rows: Iterable[FunnelRow], generations: bool) -> list[list[FunnelRow]]:
    """Rows that make one line: of a stage and a source, and of a generation if these are told apart."""
    lines: dict[tuple[str, ...], list[FunnelRow]] = {}
    for row in rows:
        lines.setdefault((row.stage, row.source, *([row.generation] if generations else [])), []).append(row)
    return list(lines.values())


def _line(rows: list[FunnelRow]) -> dict[str, Any]:
    from llmcore.account.funnel import passages

    (door,) = passages(rows)
    came = [row.bytes_read for row in rows if row.bytes_read is not None]
    first, *others = door.reasons or (("", 0),)
    by = [f"{rule} {count:,}" for rule, count in (first, *others[: RULES_SHOWN - 1]) if rule]
    return {
        "stage": door.step,
        "source": rows[0].source,
        "generation": rows[0].generation,
        "read": f"{door.read:,}",
        "kept": f"{door.kept:,}",
        "dropped": f"{door.dropped:,}",
        "share": f"{100 * door.dropped / door.read:.1f} %" if door.dropped else "",
        "bytes read": f"{sum(came):,}" if came else "",
        "bytes kept": "" if door.kept_bytes is None else f"{door.kept_bytes:,}",
        "by": ", ".join([*by, *(["…"] if len(others) >= RULES_SHOWN else [])]),
    }


@commands.command(rich_help_panel=LOOK)
def dropped(
    ref: RefArgument,
    rule: Annotated[str | None, typer.Option("--rule", help="only by this rule or reason (`llmcore funnel`)")] = None,
    stage: StageOption = None,
    source: SourceOption = None,
    n: Annotated[int, typer.Option("--n", min=1, max=10_000, help="documents at most")] = 10,
    letters: Annotated[int, typer.Option("--letters", min=0, help="of each text; 0: all of it")] = 500,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show documents that were dropped on the way to an artifact, some of every rule, with their texts."""
    from llmcore.account.dropped import dropped_behind
    from llmcore.artifacts.index import resolve_ref

    opened = existing_store(store)
    found = dropped_behind(opened, resolve_ref(opened, ref), stage or "", rule or "", source or "", n)
    if not found and (rule or stage or source):
        raise LlmcoreError(
            f"no document behind {ref} was dropped so; `llmcore funnel {ref}` says by which rules some were"
        )
    if as_json:
        print_json([document.plain() for document in found])
        return
    for document in found:
        print(f"{document.stage}: {document.rule}   {document.source} {visible(document.url or '')}  {document.id}")
        print(f"    {visible(document.detail)}")
        for line in _excerpt(document.text, letters):
            print(f"    | {line}")
        print()
    print(f"{len(found)} documents" if found else f"nothing was dropped on the way to {ref}")


def _excerpt(text: str | None, letters: int) -> Iterator[str]:
    """The lines of a text, without blank ones, up to so many letters."""
    if text is None:
        yield "(no text was taken from it yet)"
        return
    shown = visible(text[:letters] if letters else text)
    yield from (line.rstrip() for line in shown.split("\n") if line.strip())
    if letters and len(text) > letters:
        yield f"… ({len(text):,} letters)"


@commands.command(rich_help_panel=LOOK)
def generate(
    ref: RefArgument,
    prompts: Annotated[list[str] | None, typer.Argument(help="what to go on from; several give several texts")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=100_000, help="at most")] = 100,
    temperature: Annotated[float, typer.Option("--temperature", min=0.01, help="higher: more surprising")] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="likeliest tokens to draw from; 1: always the likeliest")
    ] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="another one, another text")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Let a model write on from PROMPTS; the same call writes the same text."""
    from llmcore.artifacts.index import resolve_ref
    from llmcore.evaluation.generate import generate as write

    opened = existing_store(store)
    made = resolve_ref(opened, ref)
    texts = write(opened, made, prompts or [""], tokens, temperature, top_k, seed, device)
    if as_json:
        print_json(texts)
        return
    for text in texts:
        print(visible(text["prompt"] + text["text"]))
