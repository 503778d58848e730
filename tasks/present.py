"""What the Prefect UI shows of a run: funnel, loss curve, evaluation, samples, lineage. One key, many versions."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Container, Mapping
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import Step, StoreFiles
from llmcore.artifacts.store import Store
from llmcore.release.charts import loss_curve
from tasks.showing import show


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
    rows = [
        {
            "stage": manifest.step,
            "read": manifest.metrics.get("rows_read"),
            "kept": manifest.metrics["kept_rows"],
            "dropped": manifest.metrics.get("dropped_rows", 0),
        }
        for manifest in manifests_behind(store, [split])
        if "kept_rows" in manifest.metrics
    ]
    create_table_artifact(rows, key=f"{name}-funnel", description="Documents that each stage read, kept and dropped")


def _show_training(store: Store, name: str, model: Manifest) -> None:
    history = StoreFiles(store, model.outputs).table("history.parquet")
    image = base64.b64encode(loss_curve(history).encode()).decode()
    create_image_artifact(
        f"data:image/svg+xml;base64,{image}", key=f"{name}-loss", description="Training and validation loss by step"
    )


def _show_evaluation(store: Store, name: str, evaluation: Manifest) -> None:
    files = StoreFiles(store, evaluation.outputs)
    samples = json.loads(files.path("samples.json").read_text())
    quoted = [f"> {_fenced(sample)}\n" for sample in samples]
    create_markdown_artifact("\n\n".join(quoted), key=f"{name}-samples", description="Text the model wrote")
    rows = [{"metric": metric, "value": value} for metric, value in evaluation.metrics.items()]
    create_table_artifact(rows, key=f"{name}-evaluation", description="Evaluation on held-out text")


def _show_lineage(store: Store, name: str, published: Manifest) -> None:
    create_markdown_artifact(
        f"```mermaid\n{mermaid(manifests_behind(store, [published]))}\n```",
        key=f"{name}-lineage",
        description="Every artifact behind the model, back to its sources",
    )


SHOWS: Mapping[str, Callable[[Store, str, Manifest], None]] = {
    "split": _show_funnel,
    "model": _show_training,
    "evaluation": _show_evaluation,
    "published": _show_lineage,
}


def mermaid(nodes: list[Manifest]) -> str:
    """The lineage graph in mermaid's notation, which Prefect's UI draws; edges into `publish` other than its direct
    inputs are left out, because it reads the record of every step."""
    numbers = {(node.stage, node.key): f"n{number}" for number, node in enumerate(nodes)}
    lines = ["graph TD"]
    for node in nodes:
        number = numbers[node.stage, node.key]
        lines.append(f'{number}["{node.step}<br/>{node.digest[:12]}"]')
        origins = {
            numbers[item["stage"], item["key"]]
            for role, items in node.inputs.items()
            if role != "history"
            for item in items
        }
        lines += [f"{origin} --> {number}" for origin in sorted(origins)]
    return "\n".join(lines)


def _fenced(sample: Mapping[str, Any]) -> str:
    # what a model writes is as hostile as what it read: no markup of its own in the UI
    text = f"{sample.get('prompt', '')}{sample.get('text', '')}"
    return "".join("&#96;" if c == "`" else "&lt;" if c == "<" else c for c in text).replace("\n", "\n> ")
