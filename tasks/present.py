"""What the Prefect UI shows of a run: funnel, loss curve, evaluation, samples, lineage. One key, many versions.

All are Markdown, tables in it, pictures as data URIs: what both of Prefect's UIs draw. (Mermaid is drawn by one of
them alone, an image artifact prints its whole address beneath.) The funnel is a table that can be searched.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from llmcore.account.funnel import FunnelRow, rows_behind
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import Step, StoreFiles
from llmcore.artifacts.store import Store
from llmcore.evaluation.verdict import verdict
from llmcore.release.card import interval, number, size
from llmcore.release.charts import lineage_graph, loss_curve, short, standalone
from llmcore.release.facts import over_generations, read_by_source, read_scores
from llmcore.release.lineage import graph
from tasks.showing import show

MOST_ROWS = 300  # of the funnel's table; beyond it generations are added up
MOST_TEXT = 1 << 30  # bytes of stored documents up to which the funnel measures texts, for which it reads all of them
RULES_SHOWN = 3
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def present(store: Store, name: str, step: Step, done: Mapping[str, ArtifactRef]) -> None:
    """Show what a step made, if it is one that people want to see; `name` is the configuration's."""
    if step.stage.role in SHOWS:
        show(step.name, lambda: SHOWS[step.stage.role](store, name, manifest_of(store, done[step.name])))


def show_refresh(store: Store, name: str, done: Mapping[str, ArtifactRef], kept: Container[str]) -> None:
    """A table of what a refresh found new, changed, unchanged and gone, source by source.

    kept: the steps whose snapshot stayed, because all of their files were as before.
    """
    show("what the refresh found", lambda: _show_refresh(store, name, done, kept))


def _show_refresh(store: Store, name: str, done: Mapping[str, ArtifactRef], kept: Container[str]) -> None:
    rows = []
    for step, ref in done.items():
        manifest = manifest_of(store, ref)
        if manifest.role == "fetch" and not step.startswith("previous "):
            found = {"unchanged": manifest.metrics["files"]} if step in kept else manifest.metrics
            counts = {word: found.get(word, 0) for word in ("new", "changed", "unchanged", "gone")}
            rows.append({"source": step.split(" ", 1)[1], **counts})
    create_table_artifact(rows, key=f"{name}-refresh", description="What changed since the last snapshot")


def _show_funnel(store: Store, name: str, split: Manifest) -> None:
    stored = sum(made.folders["kept"].bytes for made in manifests_behind(store, [split]) if "kept" in made.folders)
    rows = rows_behind(store, split, sizes=stored <= MOST_TEXT)
    create_table_artifact(
        [_funnel_line(row) for row in (rows if len(rows) <= MOST_ROWS else over_generations(rows))],
        key=f"{name}-funnel",
        description="Documents that each stage read, kept and dropped, and the rules that took most",
    )


def _funnel_line(row: FunnelRow) -> dict[str, Any]:
    rules = ", ".join(f"{rule} {count:,}" for rule, count in list(row.reasons.items())[:RULES_SHOWN])
    more = len(row.reasons) - RULES_SHOWN
    return {
        "stage": row.stage,
        "source": row.source,
        "read": row.read,
        "kept": row.kept,
        "dropped": row.dropped,
        "dropped %": round(100 * row.dropped / row.read, 1) if row.read else 0.0,
        "rules that took most": rules + (f", and {more} more" if more > 0 else ""),
        "text kept": size(row.bytes_kept),
        "generation": row.generation,
    }


def _show_training(store: Store, name: str, model: Manifest) -> None:
    history = StoreFiles(store, model.outputs).table("history.parquet")
    drawn = loss_curve(history)
    text = _picture("Training and validation loss", drawn) if drawn else "Too few steps to draw a curve."
    steps, tokens = history["step"].max() or 0, history["tokens"].max() or 0
    text += f"\n\n{number(float(steps))} steps, {short(float(tokens))} tokens seen.\n"  # type: ignore[arg-type]
    create_markdown_artifact(text, key=f"{name}-loss", description="Training and validation loss")


def _show_evaluation(store: Store, name: str, evaluation: Manifest) -> None:
    files = StoreFiles(store, evaluation.outputs)
    samples = json.loads(files.path("samples.json").read_text(encoding="utf-8"))
    create_markdown_artifact(
        "\n\n---\n\n".join(_quoted(sample) for sample in samples),
        key=f"{name}-samples",
        description="Text the model wrote; the prompt is bold",
    )
    report = json.loads(files.path("evaluation.json").read_text(encoding="utf-8"))
    create_markdown_artifact(
        f"{verbatim(verdict(evaluation.metrics))}\n\n{evaluation_table(report)}",
        key=f"{name}-evaluation",
        description="The model and its baselines on held-out text",
    )


def evaluation_table(report: Mapping[str, Any]) -> str:
    """evaluation.json as a Markdown table: a column for the model and each baseline, a row for each text."""
    scores = read_scores(report)
    splits = list(report["splits"])
    lines = ["| bits per byte, lower is better |" + "".join(f" {verbatim(row['name'])} |" for row in scores)]
    lines.append("|---|" + "---|" * len(scores))
    for split in splits:
        cells = [interval(row["splits"][split]) if split in row["splits"] else "–" for row in scores]
        lines.append(f"| {split} |" + "".join(f" {cell} |" for cell in cells))
    for row in read_by_source(report):
        for split, score in row["splits"].items():
            lines.append(f"| {split}, {verbatim(row['name'])} | {interval(score)} |" + " |" * (len(scores) - 1))
    return "\n".join(lines) + "\n"


def _show_lineage(store: Store, name: str, published: Manifest) -> None:
    made = [node for node in manifests_behind(store, [published]) if node.role != published.role]
    inputs = {
        role: items[0]["step"] for role, items in published.inputs.items() if role != "history" and len(items) == 1
    }
    picture = lineage_graph(*graph([node.public() for node in made], inputs))
    lines = ["| step | artifact | made | took |", "|---|---|---|---|"]
    for node in [*made, published]:
        when, took = str(node.run.get("started", ""))[:16].replace("T", " "), node.run.get("seconds")
        lines.append(
            f"| {verbatim(node.step)} | `{node.stage}/{node.key[:12]}` | {when} | "
            f"{'' if took is None else f'{took:,.0f} s'} |"
        )
    create_markdown_artifact(
        f"{_picture('Lineage of the model', picture)}\n\n" + "\n".join(lines) + "\n",
        key=f"{name}-lineage",
        description="Every artifact behind the model, back to its sources",
    )


SHOWS: Mapping[str, Callable[[Store, str, Manifest], None]] = {
    "split": _show_funnel,
    "model": _show_training,
    "evaluation": _show_evaluation,
    "published": _show_lineage,
}


def verbatim(text: str) -> str:
    """Text on one line as it is: each mark of punctuation that could mean something to Markdown or HTML is escaped."""
    return PUNCTUATION.sub(r"\\\1", " ".join(text.split()))


def _picture(label: str, svg: str) -> str:
    return f"![{label}](data:image/svg+xml;base64,{base64.b64encode(standalone(svg).encode()).decode()})"


def _quoted(sample: Mapping[str, Any]) -> str:
    # what a model writes is as hostile as what it read: no markup of its own in the UI, and none of it lost
    prompt, text = (_lines(str(sample.get(part, ""))) for part in ("prompt", "text"))
    return f"<b>{prompt}</b>{text}".replace("\n", "<br>\n")


def _lines(text: str) -> str:
    """Text line by line; blanks at the beginning of a line stay."""
    found = []
    for line in text.split("\n"):
        body = line.lstrip(" \t\r")
        found.append("\u00a0" * (len(line) - len(body)) + PUNCTUATION.sub(r"\\\1", body.replace("\r", "")))
    return "\n".join(found)
