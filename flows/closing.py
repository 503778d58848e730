"""What a command that ran a flow ends in: what the model writes, how good it is, and in the last line where it lies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.start import Made
from llmcore.account.funnel import counts_of, passages
from llmcore.artifacts.backends import FileBackend
from llmcore.artifacts.manifest import Manifest, manifest_of
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store
from llmcore.cli.output import visible
from llmcore.errors import LlmcoreError
from llmcore.evaluation.verdict import verdict
from llmcore.planning.heads import dataset_ref
from llmcore.release.facts import CONTENDERS
from llmcore.release.run_page import export_model

SAMPLES_SHOWN = 3
SAMPLE_LETTERS = 600
SPLITS = ("test", "validation")
MOST_TAKERS = 3  # stages named as those that took most


def say_stopped(made: Made, until: str) -> None:
    """The line in which `run --until` ends."""
    last = list(made.done.values())[-1]
    print(f"stopped after {until}: {last.stage}/{last.key[:12]} in {made.store.uri}")


def say_dataset(made: Made) -> None:
    """What `dataset` and `refresh` end in."""
    plan = made.artifact("plan")
    _say_documents(made, plan.key[:12])
    size = f"{plan.metrics['train_tokens']} tokens to train on in {plan.metrics['train_windows']} windows"
    print(f"dataset    {dataset_ref(made.name)}   ({size}; {plan.stage}/{plan.key[:12]} in {made.store.uri})")


def say_evaluation(made: Made) -> None:
    """What `pretrain` ends in: samples, measures, verdict, and the line that names the model."""
    model, evaluation = made.artifact("model"), made.artifact("evaluation")
    _say_samples(made.store, evaluation)
    _say_measures(evaluation.metrics)
    _say_documents(made, model.key[:12])
    print(f"model      {model.stage}/{model.key[:12]} in {made.store.uri}   (not published: llmcore release)")


def say_model(made: Made) -> None:
    """What `run` and `release` end in: the same, and the line that names the published model's folder."""
    published, evaluation = made.artifact("published"), made.artifact("evaluation")
    folder = _exported(made.store, made.name, published)
    _say_samples(made.store, evaluation)
    _say_measures(evaluation.metrics)
    _say_documents(made, made.name)
    print(f"try it     llmcore generate {made.name} 'Once upon a time'")
    print(f"lineage    llmcore lineage {made.name}   (audit: llmcore verify {made.name}, llmcore trace --url URL)")
    print(f"report     {folder / 'report.html'}")
    print(f"model      {folder}   (ref {made.name}, {published.digest[:12]})")


def _exported(store: Store, name: str, published: Manifest) -> Path:
    """The model as ordinary files beside the store (or in ~/.llmcore/models for a store on S3)."""
    home = store.backend.root.parent if isinstance(store.backend, FileBackend) else Path.home() / ".llmcore"
    folder = home / "models" / f"{name}-{published.digest[:12]}"
    if not folder.exists():
        try:
            export_model(store, published, folder)
        except LlmcoreError:
            if not folder.exists():  # else another run was faster, and it appears whole or not at all
                raise
    return folder


def _say_samples(store: Store, evaluation: Manifest) -> None:
    samples: list[dict[str, Any]] = json.loads(StoreFiles(store, evaluation.outputs).path("samples.json").read_text())
    print()
    for number, sample in enumerate(samples[:SAMPLES_SHOWN], start=1):
        text = without_blanks(sample["prompt"] + sample["text"])
        print(f"sample {number}   {text}".replace("\n", "\n           "))


def without_blanks(text: str) -> str:
    """A text to be shown: without blank lines and control characters, cut where it is long."""
    shown = re.sub(r"[ \t]*\n\s*", "\n", visible(text)).strip()
    return shown if len(shown) <= SAMPLE_LETTERS else f"{shown[:SAMPLE_LETTERS]} …"


def _say_measures(metrics: Mapping[str, Any]) -> None:
    """Bits per byte under their heading, whatever else was measured under another, and the verdict."""
    keys = {"model": "bits_per_byte"}
    scores = {name: [metrics.get(f"{split}_{keys.get(name, name)}") for split in SPLITS] for name in CONTENDERS}
    print(f"\n{'bits per byte on held-out text (lower is better)':<50}" + "".join(f"{split:>12}" for split in SPLITS))
    for name, values in scores.items():
        if any(value is not None for value in values):
            print(f"  {CONTENDERS[name]:<48}" + "".join(f"{_number(value):>12}" for value in values))
    shown = {f"{split}_{keys.get(name, name)}" for split in SPLITS for name in CONTENDERS}
    ends = tuple(f"_{end}" for end in ("low", "high"))
    plain = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    others = {name: value for name, value in plain.items() if name not in shown and not name.endswith(ends)}
    if others:
        print("also measured")
    for name, value in others.items():
        low, high = (metrics.get(f"{name}{end}") for end in ends)
        interval = "" if low is None else f"   {_number(low)} to {_number(high)}"
        print(f"  {name.replace('_', ' '):<48}{_number(value):>12}{interval}")
    print(f"\nverdict    {verdict(metrics)}")


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else f"{value:,}"


def _say_documents(made: Made, ref: str) -> None:
    """How many documents came and stand, and which stages took most."""
    manifests = {step: manifest_of(made.store, ref) for step, ref in made.done.items() if step in made.chain.steps}
    split = [manifest for manifest in manifests.values() if manifest.role == "split"]
    doors = passages(row for manifest in manifests.values() for row in counts_of(made.store, manifest, split))
    came = sum(door.read for door in doors if manifests[door.step].role == "ingest")
    takers = sorted((door for door in doors if door.dropped), key=lambda door: -door.dropped)[:MOST_TAKERS]
    took = ", ".join(f"{door.step} took {door.dropped:,}" for door in takers)
    stand = doors[-1].kept if doors else 0
    print(f"documents  {stand:,} of {came:,} stand{f'; {took}' if took else ''}   (llmcore funnel {ref})")
