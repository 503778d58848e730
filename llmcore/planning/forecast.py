"""How long each step of a chain will take: as long as its stage took last in this store, by the bytes that it reads.

A stage that never ran there takes what it took on the bundled corpus (two cores, `docs/log.md`), by the text that the
sources are likely to hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcore.artifacts.index import last_of, summaries
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of, read_manifest
from llmcore.artifacts.recipe import Step
from llmcore.artifacts.store import Store
from llmcore.planning.chain import Chain, fetch_step
from llmcore.planning.config import FileSource, PipelineConfig
from llmcore.planning.cost import collected_bytes
from llmcore.planning.extent import extent_of, extent_of_all
from llmcore.planning.plan import PlannedStep

# stage -> (seconds whatever it reads, seconds a MB of text), on two cores
TABLE: Mapping[str, tuple[float, float]] = {
    "crawl": (5.0, 0.25),
    "collect": (0.1, 0.01),
    "ingest": (0.3, 0.05),
    "extract": (0.5, 0.12),
    "clean": (0.5, 0.2),
    "language": (0.5, 0.05),
    "pii": (1.0, 0.16),
    "signatures": (1.0, 0.02),
    "resolve": (0.5, 0.06),
    "dedup": (0.5, 0.04),
    "signals": (0.5, 0.05),
    "classifier": (1.0, 0.1),
    "quality": (0.5, 0.05),
    "benchmarks": (0.3, 0.02),
    "decontaminate": (0.5, 0.05),
    "split": (0.3, 0.01),
    "versions": (0.1, 0.005),
    "tokenizer": (0.5, 0.13),
    "tokenise": (0.5, 0.35),
    "pack": (0.1, 0.01),
    "evaluate": (10.0, 4.0),
    "quantise": (4.0, 0.3),
    "publish": (4.0, 0.3),
}
GATHERED_SECONDS = 0.05  # of a per-shard stage in less, the shards were there, or counted elsewhere (version 0.1)
UNKNOWN_STAGE = (1.0, 0.1)


@dataclass(frozen=True)
class Expected:
    """seconds: None where nobody can know (a crawl). how: "" for what is there, "history", "table" or "computed"."""

    seconds: float | None
    how: str

    def plain(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "seconds_from": self.how}


def forecast(
    store: Store, config: PipelineConfig, chain: Chain, planned: Sequence[PlannedStep], cost: Mapping[str, Any]
) -> dict[str, Expected]:
    """Step -> how long it will take. cost: the training's (`cost.training_cost`)."""
    return _Forecast(store, config, cost).walk(chain, planned)


class _Forecast:
    """Walks a chain; what each step is expected to write is what the next is expected to read."""

    def __init__(self, store: Store, config: PipelineConfig, cost: Mapping[str, Any]) -> None:
        self.store, self.config, self.cost = store, config, cost
        self.megabytes = extent_of_all(config).likely / 1e6
        self.there: dict[str, ArtifactRef] = {}
        self.written: dict[str, float | None] = {}  # step -> bytes
        self._read: dict[tuple[str, str, str], Manifest | None] = {}

    def walk(self, chain: Chain, planned: Sequence[PlannedStep]) -> dict[str, Expected]:
        found = {}
        self.there |= chain.pinned
        for row in planned:
            if row.ref is not None:
                self.there[row.step] = row.ref
                found[row.step] = Expected(0.0, "")
            else:
                found[row.step] = self._expected(chain.steps[row.step], row.share)
        return found

    def _bytes(self, step: str) -> float | None:
        """What a step wrote, or is expected to write; read from its manifest only if somebody asks."""
        if step in self.there and step not in self.written:
            self.written[step] = manifest_of(self.store, self.there[step]).bytes
        return self.written.get(step)

    def _expected(self, step: Step, share: float) -> Expected:
        past = last_of(self.store, step.stage.name, step.name) or self._last_of_stage(step.stage.name)
        scale = self._scale(step, past)
        self.written[step.name] = None if past is None or scale is None else past.bytes * scale
        if step.stage.role == "model" and self.cost["devices"]:
            here = self.cost["devices"][0]
            return Expected(
                round(sum(here["hours"]) / 2 * 3600, 1), "history" if "last" in here["from"] else "computed"
            )
        took = float(past.run.get("seconds", 0)) if past is not None else 0.0
        if scale is not None and (took >= GATHERED_SECONDS or step.stage.kind == "global"):
            return Expected(round(took * scale * share, 1), "history")
        if step.stage.name == "crawl" and not self._is_bundled(step):
            return Expected(None, "")
        base, a_megabyte = TABLE.get(step.stage.name, UNKNOWN_STAGE)
        return Expected(round((base + a_megabyte * self.megabytes) * share, 1), "table")

    def _scale(self, step: Step, past: Manifest | None) -> float | None:
        """Bytes that the step will read, as a share of those that it read in the past; None where that is unknown."""
        if past is None:
            return None
        if step.stage.role == "fetch":
            return 1.0 if past.step == step.name else self._of_the_sources(step, past)
        before = sum(found.bytes for found in self._inputs(past))
        expected = [self._bytes(name) for origin in step.inputs.values() for name in origin.steps]
        if not before or any(size is None for size in expected):
            return None
        return sum(size for size in expected if size is not None) / before

    def _of_the_sources(self, step: Step, past: Manifest) -> float | None:
        """Bytes of a source's files as a share of those of another collection in the past; None for a crawl."""
        source = next(one for one in self.config.sources if step.name == fetch_step(one))
        before = collected_bytes(self.store, past)
        return extent_of(source).bytes / before if before and isinstance(source, FileSource) else None

    def _inputs(self, made: Manifest) -> list[Manifest]:
        edges = {(e["stage"], e["key"], e.get("seal", "")) for edges in made.inputs.values() for e in edges}
        for edge in edges - self._read.keys():
            self._read[edge] = read_manifest(self.store, *edge)
        return [found for edge in edges if (found := self._read[edge]) is not None]

    def _last_of_stage(self, stage: str) -> Manifest | None:
        found = summaries(self.store, stage)
        return read_manifest(self.store, stage, found[-1].key, found[-1].seal) if found else None

    def _is_bundled(self, step: Step) -> bool:
        return getattr(step.params, "serve", None) is not None


def in_words(seconds: float | None) -> str:
    """`40 s`, `6 min`, `3.5 h`, `2 days`."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
