"""How the `llmcore` command starts a flow, and what it tells of the outcome."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow

from flows.chain import step_with
from flows.quiet import forget_unsent_events, without_tracebacks
from flows.server import server_for_a_run
from llmcore.artifacts.backends import FileBackend
from llmcore.artifacts.export import export_files
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store, open_store
from llmcore.errors import LlmcoreError
from llmcore.planning.chain import Chain
from llmcore.planning.checks import must_work
from llmcore.planning.config import PipelineConfig
from llmcore.planning.heads import dataset_ref

Done = dict[str, ArtifactRef]


@dataclass(frozen=True)
class Made:
    """What a flow left in the store: step name -> artifact."""

    store: Store
    name: str
    chain: Chain
    done: Mapping[str, ArtifactRef]

    def artifact(self, role: str) -> Manifest:
        """The artifact of the last step with this role."""
        return manifest_of(self.store, self.done[step_with(self.chain, role)])


def start(
    flow: Flow[..., Done],
    plan: Callable[[Store], Chain],
    config: PipelineConfig,
    until: str | None = None,
    sources: bool = True,
    **given: Any,
) -> Made:
    """Run a flow.

    plan:  builds the chain that the flow will build; what it raises is wrong with configuration, sources or call, and
           ends the command before anything runs.
    sources: whether it reads them, so that what is wrong with them ends the command too.
    given: the flow's parameters beside `config`.
    """
    for warning in must_work(config, here=True, sources=sources):
        print(f"warning: {warning}", file=sys.stderr)
    without_tracebacks()
    with server_for_a_run() as server:
        chain = plan(open_store(config.store))
        list(chain.until(until))
        if until is not None:
            given["until"] = until
        if server is not None:
            server.wait()
        done = _outcome(flow, config, given)
    return Made(open_store(config.store), config.name, chain, done)


def _outcome(flow: Flow[..., Done], config: PipelineConfig, given: Mapping[str, Any]) -> Done:
    """What the flow returns, also where the server went away and could not be told that it did."""
    outcome: dict[str, ArtifactRef] = {}

    @wraps(flow.fn)
    def remembered(*args: Any, **named: Any) -> Done:
        outcome.update(flow.fn(*args, **named))
        return outcome

    try:
        return Flow(remembered, name=flow.name, persist_result=False)(config, **given)
    except httpx.HTTPError as error:
        if not outcome:
            raise LlmcoreError(f"the Prefect server does not answer: {error}; run again to go on") from error
        logging.getLogger(__name__).warning("the Prefect server was not told how the run ended: %s", error)
        return outcome
    finally:
        forget_unsent_events()


def say_dataset(made: Made) -> None:
    """The line in which `dataset` and `refresh` end."""
    plan = made.artifact("plan")
    size = f"{plan.metrics['train_tokens']} tokens to train on in {plan.metrics['train_windows']} windows"
    print(f"\ndataset    {dataset_ref(made.name)}   ({size}; {plan.stage}/{plan.key[:12]} in {made.store.uri})")


def say_evaluation(made: Made) -> None:
    """What `pretrain` ends in: the measures, and the line that names the model."""
    _print_measures(made.artifact("evaluation"))
    model = made.artifact("model")
    print(f"\nmodel      {model.stage}/{model.key[:12]} in {made.store.uri}   (not published: llmcore release)")


def say_model(made: Made) -> None:
    """What `run` and `release` end in: samples, measures, and the line that names the published model's folder."""
    published = made.artifact("published")
    folder = _exported(made.store, made.name, published)
    evaluation = made.artifact("evaluation")
    _print_samples(made.store, evaluation)
    _print_measures(evaluation)
    print(f"\nreport     {folder / 'report.html'}")
    print(f"lineage    llmcore lineage {made.name}   (audit: llmcore verify {made.name}, llmcore trace --url URL)")
    print(f"model      {folder}   (ref {made.name}, {published.digest[:12]})")


def _exported(store: Store, name: str, published: Manifest) -> Path:
    """The model as ordinary files beside the store (or in ~/.llmcore/models for a store on S3)."""
    home = store.backend.root.parent if isinstance(store.backend, FileBackend) else Path.home() / ".llmcore"
    folder = home / "models" / f"{name}-{published.digest[:12]}"
    if not folder.exists():
        try:
            export_files(store, published, folder)
        except LlmcoreError:
            if not folder.exists():  # else another run was faster, and it appears whole or not at all
                raise
    return folder


def _print_samples(store: Store, evaluation: Manifest) -> None:
    samples: list[dict[str, Any]] = json.loads(StoreFiles(store, evaluation.outputs).path("samples.json").read_text())
    for number, sample in enumerate(samples[:3], start=1):
        print(f"\nsample {number}   {sample.get('prompt', '')}{sample.get('text', '')}".replace("\n", "\n           "))


def _print_measures(evaluation: Manifest) -> None:
    print("\nbits per byte on held-out text (lower is better)")
    for metric, value in evaluation.metrics.items():
        print(f"  {metric:<40} {value}")
