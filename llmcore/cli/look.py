"""Commands that look at what is there: ls, show, lineage, verify, trace."""

from __future__ import annotations

from typing import Annotated

import typer

from llmcore.cli.options import DEFAULT_STORE, JsonOption, RefArgument, StageArgument, StoreOption, existing_store
from llmcore.cli.output import print_json, print_table, short
from llmcore.errors import LlmcoreError, UsageError

commands = typer.Typer()


@commands.command(rich_help_panel="Look")
def ls(
    stage: StageArgument = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List refs and artifacts."""
    from llmcore.artifacts.index import refs_by_key, summaries

    opened = existing_store(store)
    named = refs_by_key(opened)
    rows = [
        {
            "stage": found.stage,
            "step": found.step,
            "key": found.key[:12],
            "digest": found.digest[:12],
            "files": found.files,
            "bytes": found.bytes,
            "started": found.started,
            "refs": " ".join(named.get(found.key, ())),
        }
        for found in summaries(opened, stage or "")
    ]
    columns = ["stage", "step", "key", "digest", "files", "bytes", "started", "refs"]
    print_json(rows) if as_json else print_table(columns, rows)


@commands.command(rich_help_panel="Look")
def show(ref: RefArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one artifact: what made it, from what, and its files."""
    from llmcore.artifacts.index import resolve_ref

    manifest = resolve_ref(existing_store(store), ref)
    if as_json:
        print_json(manifest.plain())
        return
    rows = [{"field": name, "value": short(value)} for name, value in manifest.plain().items() if name != "outputs"]
    print_table(["field", "value"], rows)
    outputs = [
        {"file": name, "blob": output.blob[:16], "bytes": output.bytes, "rows": output.rows}
        for name, output in manifest.outputs.items()
    ]
    print_table(["file", "blob", "bytes", "rows"], outputs)


@commands.command(rich_help_panel="Look")
def lineage(ref: RefArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show the graph behind an artifact, back to its sources."""
    from llmcore.artifacts.index import resolve_ref
    from llmcore.artifacts.lineage import manifests_behind

    opened = existing_store(store)
    nodes = manifests_behind(opened, [resolve_ref(opened, ref)])
    if as_json:
        print_json([manifest.public() for manifest in nodes])
        return
    rows = [
        {
            "step": manifest.step,
            "key": manifest.key[:12],
            "digest": manifest.digest[:12],
            "from": ", ".join(dict.fromkeys(item["step"] for items in manifest.inputs.values() for item in items)),
        }
        for manifest in nodes
    ]
    print_table(["step", "key", "digest", "from"], rows)


@commands.command(rich_help_panel="Look")
def verify(ref: RefArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Re-hash everything behind an artifact; exit code 1 if anything differs."""
    from llmcore.account.verify import verify as verify_blobs
    from llmcore.artifacts.index import resolve_ref
    from llmcore.artifacts.lineage import manifests_behind

    opened = existing_store(store)
    top = resolve_ref(opened, ref)
    bad = [{"step": manifest.step, "file": name, "wrong": wrong} for manifest, name, wrong in verify_blobs(opened, top)]
    count = len(manifests_behind(opened, [top]))
    if as_json:
        print_json({"artifacts": count, "wrong": bad})
    elif bad:
        print_table(["step", "file", "wrong"], bad)
    else:
        print(f"verified: {count} artifacts behind {ref}, every blob hashes to its name")
    if bad:
        raise LlmcoreError(f"{len(bad)} of the files behind {ref} differ, first: {bad[0]['step']} {bad[0]['wrong']}")


@commands.command(rich_help_panel="Look")
def trace(
    url: Annotated[
        str | None, typer.Option(help="of a fetched, forbidden or dropped document; or a file's path or name")
    ] = None,
    doc: Annotated[str | None, typer.Option(help="document id")] = None,
    text: Annotated[str | None, typer.Option(help="words that stand in the document")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show every stage's decision on a document, and every dataset and model that holds it."""
    from llmcore.account.trace import trace as follow

    given = {name: value for name, value in (("url", url), ("doc", doc), ("text", text)) if value}
    if len(given) != 1:
        raise UsageError("give exactly one of --url, --doc and --text")
    rows = [decision.plain() for decision in follow(existing_store(store), **given)]
    if not rows:
        raise LlmcoreError(f"no document with {next(iter(given))} {next(iter(given.values()))!r} in {store}")
    print_json(rows) if as_json else print_table(["document", "step", "outcome", "detail"], rows)
