"""The whole chain: sources in, published model out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow

from flows.chain import run_chain
from flows.quiet import without_tracebacks
from llmcore.artifacts.export import export_files
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.planning.chain import build
from llmcore.planning.config import PipelineConfig, quickstart
from llmcore.planning.heads import remember_dataset, remember_model


@flow(persist_result=False)
def pipeline(
    config: PipelineConfig = quickstart(),  # noqa: B008 - the form shows it
    until: str | None = None,
    force: tuple[str, ...] = (),
) -> dict[str, ArtifactRef]:
    """Build a model from the configuration's sources and publish it under its name.

    Args:
        config: what to build; the default is the embedded quickstart.
        until: stop after this stage.
        force: stages to run again although their artifacts exist.
    """
    done = run_chain(build(config), config, until, force)
    store = open_store(config.store)
    remember_dataset(store, config.name, done)
    remember_model(store, config.name, done)
    return done


def run(config: PipelineConfig, until: str | None, force: Sequence[str]) -> None:
    """What `llmcore run` calls: the flow, with nothing started beforehand, then a summary that ends with the model."""
    without_tracebacks()
    list(build(config).until(until))  # what is wrong with sources or stage shows before anything starts
    open_store(config.store)
    done = pipeline(config, until, tuple(force))
    store = open_store(config.store)
    if "publish" not in done:
        last = list(done.values())[-1]
        print(f"stopped after {until}: {last.stage}/{last.key[:12]} in {store.uri}")
        return
    published = manifest_of(store, done["publish"])
    folder = _exported(store, config.name, published)
    _print_summary(store, manifest_of(store, done["evaluate"]))
    print(f"\nreport     {folder / 'report.html'}")
    print(f"lineage    llmcore lineage {config.name}   (audit: llmcore verify {config.name}, llmcore trace --url URL)")
    print(f"model      {folder}   (ref {config.name}, {published.digest[:12]})")


def _exported(store: Store, name: str, published: Manifest) -> Path:
    """The model as ordinary files beside the store (or in ~/.llmcore/models for a store on S3)."""
    local = store.uri.startswith("file://")
    home = Path(store.uri.removeprefix("file://")).parent if local else Path.home() / ".llmcore"
    folder = home / "models" / f"{name}-{published.digest[:12]}"
    if not folder.exists():
        try:
            export_files(store, published, folder)
        except LlmcoreError:
            if not folder.exists():  # else another run was faster, and it appears whole or not at all
                raise
    return folder


def _print_summary(store: Store, evaluation: Manifest) -> None:
    files = StoreFiles(store, evaluation.outputs)
    samples: list[dict[str, Any]] = json.loads(files.path("samples.json").read_text())
    for number, sample in enumerate(samples[:3], start=1):
        print(f"\nsample {number}   {sample.get('prompt', '')}{sample.get('text', '')}".replace("\n", "\n           "))
    print("\nbits per byte on held-out text (lower is better)")
    for metric, value in evaluation.metrics.items():
        print(f"  {metric:<40} {value}")
