"""run.html: when, where and how fast a model was made.

What is measured differs from run to run, so it is no output of any stage and enters no digest: the page is written from
the manifests' records when a model is exported, beside the files that `lineage.json` vouches for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmcore.artifacts.export import export_files
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store
from llmcore.release.facts import read_history
from llmcore.release.report import page_environment

RUN_PAGE = "run.html"


def export_model(store: Store, published: Manifest, folder: Path) -> None:
    """`export_files`, and for a published model the page beside them."""
    beside = {RUN_PAGE: run_page(store, published)} if published.role == "published" else {}
    export_files(store, published, folder, beside)


def run_page(store: Store, published: Manifest) -> str:
    """The page as HTML."""
    behind = manifests_behind(store, [published])
    models = [manifest for manifest in behind if manifest.role == "model"]
    return (
        page_environment()
        .get_template("run.html.j2")
        .render(
            name=published.identity["params"].get("name") or published.step,
            digest=published.digest,
            training=training_facts(store, models[-1]) if models else {},
            steps=[_step(manifest) for manifest in behind],
            packages=dict(published.environment.get("packages", {})),
        )
    )


def training_facts(store: Store, model: Manifest) -> dict[str, str]:
    """What was measured of a training, in words: when, how long, how fast, on what, by which code."""
    run, place = model.run, model.environment
    seconds = float(run.get("seconds") or 0)
    tokens = read_history(StoreFiles(store, model.outputs))["tokens"].max() or 0
    facts = {"trained": _minute(run), "took": _duration(seconds)}
    if run.get("went_on"):
        facts["took"] += ", from the checkpoint that it went on from"
    elif seconds and isinstance(tokens, int):
        facts["speed"] = f"{tokens / seconds:,.0f} tokens a second, start and validation included"
    facts |= {"hardware": hardware(place), "host": str(run.get("host") or "")}
    facts["code"] = ", ".join(filter(None, (f"llmcore {place.get('llmcore', '')}", _commit(place))))
    return {name: value for name, value in facts.items() if value.strip()}


def hardware(place: Mapping[str, Any]) -> str:
    """A manifest's environment as one line: GPUs, processor, cores."""
    gpus: Iterable[str] = filter(None, place.get("gpus") or ())
    processor = place.get("processor") or place.get("machine") or ""
    cores = f"{place['cores']} cores" if place.get("cores") else ""
    return ", ".join(filter(None, (*gpus, str(processor), cores)))


def _step(manifest: Manifest) -> dict[str, str]:
    return {
        "step": manifest.step,
        "artifact": f"{manifest.stage}/{manifest.key[:12]}",
        "when": _minute(manifest.run),
        "took": _work(manifest.run),
        "host": str(manifest.run.get("host") or ""),
        "commit": _commit(manifest.environment),
    }


def _work(run: Mapping[str, Any]) -> str:
    """Seconds; of a stage whose shards many workers computed, how many those were."""
    if "shards_computed" in run:
        return f"{run['shards_computed']:,} shards"
    return _duration(float(run.get("seconds") or 0))


def _minute(run: Mapping[str, Any]) -> str:
    return str(run.get("started") or "")[:16].replace("T", " ")


def _commit(place: Mapping[str, Any]) -> str:
    return f"commit {str(place['git'])[:12]}" if place.get("git") else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
