"""The `llmcore` command. Exit codes: 0 done, 1 the work failed, 2 the call or the configuration is wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from llmcore.errors import LlmcoreError, UsageError

app = typer.Typer(
    help="Build a language model from scratch and account for every byte of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigArgument = Annotated[Path | None, typer.Argument(help="YAML configuration; none: the embedded quickstart")]
StoreOption = Annotated[str, typer.Option("--store", envvar="LLMCORE_STORE", help="store URI")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
DEFAULT_STORE = "file://~/.llmcore/store"


@app.command()
def run(
    config: ConfigArgument = None,
    until: Annotated[str | None, typer.Option(help="stop after this stage")] = None,
    force: Annotated[list[str] | None, typer.Option(help="run this stage again although its artifact exists")] = None,
    store: Annotated[str | None, typer.Option(envvar="LLMCORE_STORE", help="instead of the configuration's")] = None,
) -> None:
    """Run the pipeline flow; the last line names the published model."""
    found = {point.name: point for point in entry_points(group="llmcore.flows")}
    if "pipeline" not in found:
        raise UsageError("no flow is installed under llmcore.flows; reinstall llmcore with its flows")
    found["pipeline"].load()(_config(config, store), until, tuple(force or ()))


@app.command()
def plan(
    config: ConfigArgument = None,
    store: Annotated[str | None, typer.Option(envvar="LLMCORE_STORE", help="instead of the configuration's")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say stage by stage what is cached, what would run and why, and what the training costs."""
    from llmcore.artifacts.store import open_store
    from llmcore.planning.chain import build
    from llmcore.planning.cost import training_cost
    from llmcore.planning.plan import plan_chain

    settings = _config(config, store)
    opened = open_store(settings.store)
    rows = [row.plain() for row in plan_chain(opened, build(settings))]
    cost = training_cost(opened, settings)
    if as_json:
        _print_json({"steps": rows, "training": cost})
        return
    _print_table(["step", "state", "why"], rows)
    _print_table(["training", "value"], [{"training": name, "value": value} for name, value in cost.items()])


@app.command()
def ls(
    stage: Annotated[str | None, typer.Argument(help="only artifacts of this stage")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List refs and artifacts."""
    from llmcore.artifacts.manifest import manifests
    from llmcore.artifacts.store import open_store

    opened = open_store(store)
    named: dict[str, list[str]] = {}
    for name, ref in opened.refs():
        named.setdefault(ref["key"], []).append(name)
    rows = [
        {
            "stage": manifest.stage,
            "step": manifest.step,
            "key": manifest.key[:12],
            "digest": manifest.digest[:12],
            "files": len(manifest.outputs),
            "bytes": sum(output.bytes for output in manifest.outputs.values()),
            "started": manifest.run.get("started", ""),
            "refs": " ".join(named.get(manifest.key, ())),
        }
        for manifest in sorted(manifests(opened, stage or ""), key=lambda m: str(m.run.get("started", "")))
    ]
    columns = ["stage", "step", "key", "digest", "files", "bytes", "started", "refs"]
    _print_json(rows) if as_json else _print_table(columns, rows)


@app.command()
def show(ref: str, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one artifact: REF is a name, or the start of a key or digest."""
    from llmcore.artifacts.manifest import resolve_ref
    from llmcore.artifacts.store import open_store

    manifest = resolve_ref(open_store(store), ref)
    if as_json:
        _print_json(manifest.plain())
        return
    rows = [{"field": name, "value": _short(value)} for name, value in manifest.plain().items() if name != "outputs"]
    _print_table(["field", "value"], rows)
    outputs = [
        {"file": name, "blob": output.blob[:16], "bytes": output.bytes, "rows": output.rows}
        for name, output in manifest.outputs.items()
    ]
    _print_table(["file", "blob", "bytes", "rows"], outputs)


@app.command()
def lineage(ref: str, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show the graph behind an artifact, back to its sources."""
    from llmcore.artifacts.lineage import manifests_behind
    from llmcore.artifacts.manifest import resolve_ref
    from llmcore.artifacts.store import open_store

    opened = open_store(store)
    nodes = manifests_behind(opened, [resolve_ref(opened, ref)])
    if as_json:
        _print_json([manifest.public() for manifest in nodes])
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
    _print_table(["step", "key", "digest", "from"], rows)


@app.command()
def verify(ref: str, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Re-hash everything behind an artifact; exit code 1 if anything differs."""
    from llmcore.account.verify import verify as verify_blobs
    from llmcore.artifacts.lineage import manifests_behind
    from llmcore.artifacts.manifest import resolve_ref
    from llmcore.artifacts.store import open_store

    opened = open_store(store)
    top = resolve_ref(opened, ref)
    bad = [{"step": manifest.step, "file": name, "wrong": wrong} for manifest, name, wrong in verify_blobs(opened, top)]
    count = len(manifests_behind(opened, [top]))
    if as_json:
        _print_json({"artifacts": count, "wrong": bad})
    elif bad:
        _print_table(["step", "file", "wrong"], bad)
    else:
        print(f"verified: {count} artifacts behind {ref}, every blob hashes to its name")
    if bad:
        raise LlmcoreError(f"{len(bad)} of the files behind {ref} differ, first: {bad[0]['step']} {bad[0]['wrong']}")


@app.command()
def trace(
    url: Annotated[str | None, typer.Option(help="of a fetched, forbidden or dropped document")] = None,
    doc: Annotated[str | None, typer.Option(help="document id")] = None,
    text: Annotated[str | None, typer.Option(help="words that stand in the document")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show every stage's decision on a document, and every dataset and model that holds it."""
    from llmcore.account.trace import trace as follow
    from llmcore.artifacts.store import open_store

    given = {name: value for name, value in (("url", url), ("doc", doc), ("text", text)) if value}
    if len(given) != 1:
        raise UsageError("give exactly one of --url, --doc and --text")
    rows = [decision.plain() for decision in follow(open_store(store), **given)]
    if not rows:
        raise LlmcoreError(f"no document with {next(iter(given))} {next(iter(given.values()))!r} in {store}")
    _print_json(rows) if as_json else _print_table(["document", "step", "outcome", "detail"], rows)


@app.command()
def export(ref: str, folder: Path, store: StoreOption = DEFAULT_STORE) -> None:
    """Write an artifact as ordinary files; a model as the folder that transformers, vLLM and llama.cpp load."""
    from llmcore.artifacts.export import export_files
    from llmcore.artifacts.manifest import resolve_ref
    from llmcore.artifacts.store import open_store

    opened = open_store(store)
    export_files(opened, resolve_ref(opened, ref), folder)
    print(folder)


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="delete; without it only show")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="hours; younger objects may belong to a run under way")] = 24,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show (and with --yes delete) what no ref reaches."""
    from llmcore.artifacts.gc import garbage
    from llmcore.artifacts.store import open_store

    opened = open_store(store)
    found = garbage(opened, timedelta(hours=older_than))
    total = sum(entry.bytes for entry in found)
    rows = [{"name": entry.name, "bytes": entry.bytes} for entry in found]
    if as_json:
        _print_json({"deleted": yes, "bytes": total, "objects": rows})
    else:
        _print_table(["name", "bytes"], rows)
    if yes:
        for entry in found:
            opened.backend.delete(entry.name)
    if not as_json:
        verb = "deleted" if yes else "unreachable (delete with --yes)"
        print(f"{len(found)} objects, {total / 1e6:.1f} MB {verb}")


@app.command()
def doctor(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Say what this machine can do."""
    from llmcore.planning.doctor import examine

    rows = [finding.plain() for finding in examine(store)]
    _print_json(rows) if as_json else _print_table(["what", "state", "detail"], rows)
    if any(row["state"] == "broken" for row in rows):
        raise LlmcoreError("something this machine needs is broken; see the table")


@app.command()
def config(path: ConfigArgument = None, as_json: JsonOption = False) -> None:
    """Print the quickstart's configuration, to start your own from; or check one, and print it whole as JSON."""
    from llmcore.planning.config import load, quickstart_text

    if as_json:
        print(load(path).model_dump_json())
    elif path is None:
        print(quickstart_text(), end="")
    else:
        print(f"{path}: good, builds {load(path).name}")


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="print tables of keys, defaults and meanings")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors; or every key of it as a page to read."""
    from llmcore.planning.config import PipelineConfig
    from llmcore.planning.reference import configuration_tables

    print(configuration_tables(), end="") if markdown else _print_json(PipelineConfig.model_json_schema())


def _config(path: Path | None, store: str | None) -> Any:
    from llmcore.planning.config import load

    config = load(path)
    return config if store is None else config.model_copy(update={"store": store})


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, ensure_ascii=False, default=str))


def _print_table(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    names = list(columns)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(name) is None else _short(row[name]) for name in names))
    # piped output is for other programs: never cut it at a guessed width
    Console(width=None if sys.stdout.isatty() else 400, markup=False, highlight=False, emoji=False).print(table)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 1000 else text[:999] + "…"


def main() -> None:
    """Run the command; every foreseen failure ends in one line on stderr and its exit code."""
    try:
        app(standalone_mode=True)
    except LlmcoreError as error:
        if os.environ.get("LLMCORE_DEBUG"):
            raise
        print(f"llmcore: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("llmcore: interrupted; run again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
