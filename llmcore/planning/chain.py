"""The chain: which stages, in which order, over which inputs. Flows run it, `plan` reads it.

It reads like a table of contents: every `chain.add` is one artifact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmcore.artifacts.manifest import ArtifactRef
from llmcore.artifacts.params import Params
from llmcore.artifacts.recipe import From, Step
from llmcore.artifacts.stage import Stage
from llmcore.errors import UsageError
from llmcore.evaluation import stage as evaluate
from llmcore.planning import targets
from llmcore.planning.config import CrawlSource, FileSource, PipelineConfig
from llmcore.release import k_quants, publish, quantise
from llmcore.selection import classifier, decontaminate, dedup, quality, signals, split
from llmcore.sources import collect, crawl, ingest
from llmcore.text import clean, extract, language, pii
from llmcore.tokens import pack, tokenise, tokenizer
from llmcore.training import resume as checkpoint
from llmcore.training import stage as train

P = TypeVar("P", bound=Params)
FIRST_SNAPSHOT = 0


@dataclass
class Chain:
    """Steps in an order in which each comes after its inputs."""

    steps: dict[str, Step] = field(default_factory=dict)
    pinned: dict[str, ArtifactRef] = field(default_factory=dict)

    def add(
        self,
        stage: Stage,
        params: Any,
        inputs: Mapping[str, From | str] | None = None,
        outside: Mapping[str, Any] | None = None,
        name: str = "",
        label: str = "",
        generation: int = 0,
    ) -> str:
        """Append a step; returns its name, which later steps take as input."""
        step = name or stage.name
        given = (inputs or {}).items()
        origins = {role: From((origin,)) if isinstance(origin, str) else origin for role, origin in given}
        self.steps[step] = Step(step, stage, params, origins, outside or {}, label, generation)
        return step

    def until(self, last: str | None) -> Iterator[Step]:
        """The steps up to and including `last` (a step, or all steps of a stage); all of them if None.

        Raises UsageError if there is no such step.
        """
        chosen = list(self.steps.values())
        if last is not None:
            places = [i for i, step in enumerate(chosen) if last in (step.name, step.stage.name)]
            if not places:
                raise UsageError(f"no stage {last!r} in the chain; there are {', '.join(self.steps)}")
            chosen = chosen[: places[-1] + 1]
        yield from chosen


def build(
    config: PipelineConfig,
    snapshot: Mapping[str, ArtifactRef] | None = None,
    previous: Mapping[str, ArtifactRef] | None = None,
    label: str | None = None,
    generation: int = 0,
    resume: checkpoint.CheckpointParams | None = None,
) -> Chain:
    """The chain that a configuration means.

    snapshot: crawl and collect artifacts to use instead of fetching (step name -> reference): an existing dataset.
    previous: crawl and collect artifacts to refresh: what is new or changed since is appended to them.
    generation: number of the generation of shards that what is fetched begins with.
    label:    names this snapshot of the outside world instead of the configuration; it enters the crawl's key.
    resume:   another training's checkpoint (planning/resume.py: find) from which this one's training goes on.
    Raises UsageError if a source's files are missing, or a format is asked for that cannot be written here.
    """
    config = targets.resolved(config)
    k_quants.check_available(config.quantise.formats)
    chain = Chain(pinned=dict(snapshot or {}))
    documents = []
    for source in config.sources:
        fetched = _fetch(chain, source, previous or {}, label, generation)
        name = f"ingest {source.name}"
        documents.append(chain.add(ingest.STAGE, source.ingest_params(), {"files": fetched}, {}, name, source.name))

    extracted = chain.add(extract.STAGE, config.extract, {"documents": From(tuple(documents))})
    cleaned = chain.add(clean.STAGE, config.clean, {"documents": extracted})
    in_language = chain.add(language.STAGE, config.language, {"documents": cleaned})
    scrubbed = chain.add(pii.STAGE, config.pii, {"documents": in_language})

    signatures = chain.add(dedup.SIGNATURES, _part(config.dedup, dedup.SignatureParams), {"documents": scrubbed})
    decisions = chain.add(dedup.RESOLVE, _part(config.dedup, dedup.ResolveParams), {"signatures": signatures})
    unique = chain.add(dedup.STAGE, dedup.KeepParams(), {"documents": scrubbed, "decisions": decisions})

    measured = chain.add(signals.STAGE, config.signals, {"documents": unique})
    learnt_from = {"documents": _first(unique, "kept/"), "signals": _first(measured, "signals/")}
    trained = chain.add(classifier.STAGE, config.classifier, learnt_from)
    judged = {"documents": unique, "signals": measured, "classifier": trained}
    good = chain.add(quality.STAGE, config.quality, judged)

    overlap = config.decontaminate
    benchmarks = chain.add(
        decontaminate.BENCHMARKS,
        overlap.benchmark_params(),
        {"documents": _first(good, "kept/")},
        {"paths": overlap.paths()},
    )
    clear = chain.add(decontaminate.STAGE, overlap.overlap_params(), {"documents": good, "benchmarks": benchmarks})
    parts = chain.add(split.STAGE, config.split, {"documents": clear})

    vocabulary = chain.add(tokenizer.STAGE, config.tokenizer, {"documents": _first(parts, "kept/")})
    tokens = chain.add(tokenise.STAGE, config.tokenise, {"documents": parts, "tokenizer": vocabulary})
    plan = chain.add(pack.STAGE, config.pack, {"tokens": tokens})

    read = {"tokens": tokens, "plan": plan, "tokenizer": vocabulary}
    if resume is not None:
        read["resume"] = chain.add(checkpoint.STAGE, resume)
    model = chain.add(train.STAGE, config.train, read)
    tested = {"model": model, "tokenizer": vocabulary, "tokens": tokens}
    evaluation = chain.add(evaluate.STAGE, config.evaluate, {**tested, "documents": parts})
    quantised = chain.add(quantise.STAGE, config.quantise, tested)

    told: dict[str, From | str] = {"model": model, "tokenizer": vocabulary, "quantised": quantised}
    told |= {"evaluation": evaluation, "plan": plan, "history": From(tuple(chain.steps), labelled=True)}
    chain.add(publish.STAGE, config.publish_params(), told)
    return chain


def _first(step: str, folder: str) -> From:
    """The first snapshot's part: what is learned from it stays when shards are appended."""
    return From((step,), folder, FIRST_SNAPSHOT)


def _part(section: Params, stage: type[P]) -> P:
    """The fields of a configuration's section that one of its stages takes."""
    return stage(**{name: getattr(section, name) for name in stage.model_fields})


def _fetch(
    chain: Chain,
    source: CrawlSource | FileSource,
    previous: Mapping[str, ArtifactRef],
    label: str | None,
    generation: int,
) -> str:
    name = fetch_step(source)
    inputs = {}
    if name in previous:
        chain.pinned[f"previous {name}"] = previous[name]
        inputs["previous"] = From((f"previous {name}",))
    if isinstance(source, CrawlSource):
        params = source.crawl_params(label)
        return chain.add(crawl.STAGE, params, inputs, source.outside(), name, generation=generation)
    if name in chain.pinned:
        return chain.add(collect.STAGE, None, name=name)
    scanned, paths = source.scan()
    return chain.add(collect.STAGE, scanned, inputs, {"paths": paths}, name, generation=generation)


def fetch_step(source: CrawlSource | FileSource) -> str:
    """Name of the step that brings a source in."""
    return f"{'crawl' if isinstance(source, CrawlSource) else 'collect'} {source.name}"


def fetching(config: PipelineConfig) -> dict[str, Step]:
    """The first steps of a configuration's chain: its sources as they are today, by the name of their step."""
    chain = Chain()
    for source in config.sources:
        _fetch(chain, source, {}, None, 0)
    return chain.steps
