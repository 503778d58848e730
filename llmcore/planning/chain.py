"""The chain: which stages, in which order, over which inputs. Flows run it, `plan` reads it.

It reads like a table of contents: `build` names the parts, and in them every `chain.add` is one artifact. Another chain
takes the parts it needs and goes on from the steps they return.
"""

from __future__ import annotations

import difflib
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
from llmcore.selection import classifier, decontaminate, dedup, quality, signals, split, versions
from llmcore.sources import collect, crawl, ingest
from llmcore.text import clean, extract, language, pii, site_lines, trim
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
                near = difflib.get_close_matches(last, [*self.steps, *(step.stage.name for step in chosen)], n=1)
                hint = f"did you mean {near[0]!r}? There" if near else "there"
                raise UsageError(f"--until: no stage {last!r} in the chain; {hint} are {', '.join(self.steps)}")
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
    documents = add_documents(chain, config, previous or {}, label, generation)
    parts = add_selection(chain, config, documents)
    tokens = add_tokens(chain, config, parts)
    model = add_base_model(chain, config, parts, tokens, resume)
    add_release(chain, config, parts, tokens, model)
    return chain


@dataclass(frozen=True)
class Documents:
    """Steps that make documents. fetched: by source; scrubbed: the last one."""

    fetched: Mapping[str, str]
    scrubbed: str


@dataclass(frozen=True)
class Parts:
    """Steps that choose documents. split: all that were chosen; versions: which of these no longer stand."""

    split: str
    versions: str


@dataclass(frozen=True)
class Tokens:
    """Steps that make tokens."""

    tokenizer: str
    tokens: str
    plan: str


@dataclass(frozen=True)
class BaseModel:
    """Steps that make a model and judge it."""

    model: str
    evaluation: str


def add_documents(
    chain: Chain, config: PipelineConfig, previous: Mapping[str, ArtifactRef], label: str | None, generation: int
) -> Documents:
    """The outside world to clean documents."""
    fetched = {source.name: _fetch(chain, source, previous, label, generation) for source in config.sources}
    ingested = [
        chain.add(
            ingest.STAGE,
            source.ingest_params(),
            {"files": fetched[source.name]},
            name=f"ingest {source.name}",
            label=source.name,
        )
        for source in config.sources
    ]
    extracted = chain.add(extract.STAGE, config.extract, {"documents": From(tuple(ingested))})
    cleaned = chain.add(clean.STAGE, config.clean, {"documents": extracted})
    repeated = _part(config.site_lines, site_lines.LearnParams)
    learned = chain.add(site_lines.STAGE, repeated, {"documents": _first(cleaned, "kept/")})
    own = {"documents": cleaned, "site_lines": learned}
    trimmed = chain.add(trim.STAGE, _part(config.site_lines, trim.TrimParams), own)
    in_language = chain.add(language.STAGE, config.language, {"documents": trimmed})
    return Documents(fetched, chain.add(pii.STAGE, config.pii, {"documents": in_language}))


def add_selection(chain: Chain, config: PipelineConfig, documents: Documents) -> Parts:
    """Documents to those that are worth reading, in splits."""
    signatures = chain.add(
        dedup.SIGNATURES, _part(config.dedup, dedup.SignatureParams), {"documents": documents.scrubbed}
    )
    compared: dict[str, From | str] = {"signatures": signatures, "documents": From((documents.scrubbed,), "kept/")}
    decisions = chain.add(dedup.RESOLVE, _part(config.dedup, dedup.ResolveParams), compared)
    unique = chain.add(dedup.STAGE, dedup.KeepParams(), {"documents": documents.scrubbed, "decisions": decisions})

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
    read = {"documents": From((parts,), "kept/"), "decisions": From((decisions,)), **_listings(config, documents)}
    return Parts(parts, chain.add(versions.STAGE, versions.VersionsParams(gone=_dropping(config)), read))


def add_tokens(chain: Chain, config: PipelineConfig, parts: Parts) -> Tokens:
    """Documents to packed tokens. What is learned and tokenised does not depend on which documents still stand."""
    vocabulary = chain.add(tokenizer.STAGE, config.tokenizer, {"documents": _first(parts.split, "kept/")})
    tokens = chain.add(tokenise.STAGE, config.tokenise, {"documents": parts.split, "tokenizer": vocabulary})
    plan = chain.add(pack.STAGE, config.pack, {"tokens": tokens, "versions": _left(parts)})
    return Tokens(vocabulary, tokens, plan)


def add_base_model(
    chain: Chain,
    config: PipelineConfig,
    parts: Parts,
    tokens: Tokens,
    resume: checkpoint.CheckpointParams | None = None,
) -> BaseModel:
    """Packed tokens to a model, and how good it is."""
    read: dict[str, From | str] = {"tokens": tokens.tokens, "plan": tokens.plan, "tokenizer": tokens.tokenizer}
    if resume is not None:
        read["resume"] = chain.add(checkpoint.STAGE, resume)
    model = chain.add(train.STAGE, config.train, read)
    tested: dict[str, From | str] = {"model": model, "tokenizer": tokens.tokenizer, "tokens": tokens.tokens}
    tested |= {"plan": From((tokens.plan,), "plan/"), "documents": parts.split, "versions": _left(parts)}
    evaluation = chain.add(evaluate.STAGE, config.evaluate, tested)
    return BaseModel(model, evaluation)


def add_release(chain: Chain, config: PipelineConfig, parts: Parts, tokens: Tokens, made: BaseModel) -> None:
    """A model to the folder that other people's tools load."""
    tested: dict[str, From | str] = {"model": made.model, "tokenizer": tokens.tokenizer, "tokens": tokens.tokens}
    quantised = chain.add(quantise.STAGE, config.quantise, {**tested, "versions": _left(parts)})
    told: dict[str, From | str] = {"model": made.model, "tokenizer": tokens.tokenizer, "quantised": quantised}
    told |= {"evaluation": made.evaluation, "plan": tokens.plan}
    chain.add(publish.STAGE, config.publish_params(), told | {"history": From(tuple(chain.steps), labelled=True)})


def _first(step: str, folder: str) -> From:
    """The first snapshot's part: what is learned from it stays when shards are appended."""
    return From((step,), folder, FIRST_SNAPSHOT)


def _part(section: Params, stage: type[P]) -> P:
    """The fields of a configuration's section that one of its stages takes."""
    return stage(**{name: getattr(section, name) for name in stage.model_fields})


def _left(parts: Parts) -> From:
    """The documents that no longer stand."""
    return From((parts.versions,), "dropped/")


def _dropping(config: PipelineConfig) -> dict[str, versions.Kind]:
    """Sources whose gone documents leave, and their kinds."""
    return {source.name: source.kind for source in config.sources if source.gone == "drop"}


def _listings(config: PipelineConfig, documents: Documents) -> dict[str, From]:
    """What those sources' fetches list, by role; what the others' list decides nothing and stays out of the key."""
    steps = {
        role: tuple(
            documents.fetched[source.name]
            for source in config.sources
            if source.gone == "drop" and isinstance(source, CrawlSource) == crawled
        )
        for role, crawled in (("fetches", True), ("collected", False))
    }
    return {role: From(named, f"{role}/", labelled=True) for role, named in steps.items() if named}


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
