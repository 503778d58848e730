"""A step of a chain, and the recipe it becomes once its inputs are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from llmcore.artifacts.digests import data_digest
from llmcore.artifacts.keys import deciding_fields, key_of
from llmcore.artifacts.manifest import NOTHING, ArtifactRef, Manifest, Output, manifest_of, outputs_digest
from llmcore.artifacts.shards import generation_of, shard_order
from llmcore.artifacts.stage import Stage
from llmcore.artifacts.store import Store, suffix_of
from llmcore.errors import LlmcoreError


@dataclass(frozen=True)
class From:
    """Which files of which earlier steps a role gets.

    folder:     only files below it.
    generation: only shards of this generation (0 = the first snapshot), so that what is learned from them stays when
                shards are appended.
    labelled:   names get their step in front ("clean/dropped/…"), for roles that read many steps at once.
    """

    steps: tuple[str, ...]
    folder: str = ""
    generation: int | None = None
    labelled: bool = False


@dataclass(frozen=True)
class Step:
    """One stage at its place in a chain.

    outside: where the outside world lies today; it never enters a key.
    generation: number of the first generation of shards that a fetching step makes; it enters the key unless it is 0.
    label:   put behind the generation in the names of the shards that this step makes from raw files
             ("g000.warc.gz" -> "g000-httpd-00000.parquet"), so that the shards of several sources can lie side by side.
    """

    name: str
    stage: Stage
    params: Any
    inputs: Mapping[str, From] = field(default_factory=dict)
    outside: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    generation: int = 0


class StoreFiles:
    """`Files` over stored outputs: every path is fetched and verified when it is asked for."""

    def __init__(self, store: Store, outputs: Mapping[str, Output]) -> None:
        self.store = store
        self.outputs = outputs

    def names(self, prefix: str = "") -> Sequence[str]:
        return sorted((name for name in self.outputs if name.startswith(prefix)), key=shard_order)

    def path(self, name: str) -> Path:
        if name not in self.outputs:
            raise LlmcoreError(f"no file {name!r} among the inputs; there are {', '.join(self.names()[:5])} …")
        return self.store.fetch_blob(self.outputs[name].blob, suffix_of(name), name)

    def table(self, prefix: str = "") -> pl.DataFrame:
        found = [table for _, table in self.tables(prefix)]
        if not found:
            raise LlmcoreError(f"no table under {prefix!r} among the inputs")
        return pl.concat(found)

    def tables(self, prefix: str = "") -> Iterator[tuple[str, pl.DataFrame]]:
        for name in self.names(prefix):
            if name.endswith(".parquet"):
                yield name, read_table(self.path(name), name)


def read_table(path: Path, name: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LlmcoreError(f"{name}: not readable as Parquet ({error}); rerun its stage with --force") from error


@dataclass(frozen=True)
class Part:
    """What a role takes of one artifact: the files below a folder ("" = all), of one generation (None = of all)."""

    label: str
    manifest: Manifest
    folder: str
    generation: int | None

    @property
    def digest(self) -> str:
        """Digest of these files under their own names, from the manifest's totals where they say it."""
        if not self.folder and self.generation is None:
            return self.manifest.digest
        top, _, below = self.folder.partition("/")
        if not top or below:
            return outputs_digest(self.outputs)
        found = self.manifest.folders.get(top)
        if found is None:
            return NOTHING
        return found.digest if self.generation is None else found.generations.get(str(self.generation), NOTHING)

    @property
    def outputs(self) -> dict[str, Output]:
        return {
            name: output
            for name, output in self.manifest.outputs.items()
            if name.startswith(self.folder) and (self.generation is None or generation_of(name) == self.generation)
        }


@dataclass(frozen=True)
class Selection:
    """The files of one role. Its digest is known without a look at each of them."""

    step: str
    role: str
    parts: tuple[Part, ...]

    @cached_property
    def digest(self) -> str:
        (first, *more) = self.parts
        if not more and not first.label:
            return first.digest
        return key_of([[part.label, part.digest] for part in self.parts])

    @cached_property
    def outputs(self) -> Mapping[str, Output]:
        """Name -> file. LlmcoreError if two of the artifacts have one of the same name."""
        chosen: dict[str, Output] = {}
        for part in self.parts:
            for name, output in part.outputs.items():
                label = f"{part.label}/{name}" if part.label else name
                if label in chosen:
                    raise LlmcoreError(f"{self.step}: two inputs of role {self.role!r} have a file {label!r}")
                chosen[label] = output
        return chosen


@dataclass(frozen=True)
class Recipe:
    """A step with its inputs resolved: everything that decides what comes out, and hence its key."""

    step: Step
    inputs: Mapping[str, Selection]

    @property
    def stage(self) -> Stage:
        return self.step.stage

    @property
    def sources(self) -> dict[str, tuple[Manifest, ...]]:
        """Role -> the artifacts that it takes files of."""
        return {role: tuple(part.manifest for part in selection.parts) for role, selection in self.inputs.items()}

    @cached_property
    def edges(self) -> dict[str, tuple[dict[str, str], ...]]:
        return {role: tuple(source.edge() for source in sources) for role, sources in self.sources.items()}

    @cached_property
    def files(self) -> Mapping[str, Mapping[str, Output]]:
        """Role -> name -> file."""
        return {role: selection.outputs for role, selection in self.inputs.items()}

    @cached_property
    def identity(self) -> dict[str, Any]:
        inputs = {role: selection.digest for role, selection in self.inputs.items()}
        identity = {**own_identity(self.stage, self.step.params), "inputs": inputs}
        if self.step.generation:
            identity["generation"] = self.step.generation
        if self.stage.tells_lineage:
            identity["lineage"] = key_of(self.edges)
        return identity

    @cached_property
    def key(self) -> str:
        return key_of(self.identity)


def own_identity(stage: Stage, params: Any) -> dict[str, Any]:
    """What of a stage's identity is known before its inputs are: name, version, parameters, digests of its data."""
    data = {name: data_digest(path) for name, path in stage.data_files(params).items()}
    own = {"stage": stage.name, "version": stage.version, "params": plain_params(params)}
    return own | ({"data": data} if data else {})


def plain_params(params: Any) -> Any:
    """Parameters as plain JSON data: what of them enters the key."""
    if isinstance(params, BaseModel):
        return params.model_dump(mode="json")
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        return deciding_fields(params)
    return params


def resolve(store: Store, step: Step, done: Mapping[str, ArtifactRef]) -> Recipe:
    """The recipe of a step whose inputs are built. KeyError names a step that is not."""
    inputs = {}
    for role, origin in step.inputs.items():
        folder = _folder(step.stage, role, origin)
        parts = tuple(
            Part(name if origin.labelled else "", manifest_of(store, done[name]), folder, origin.generation)
            for name in origin.steps
        )
        inputs[role] = Selection(step.name, role, parts)
    return Recipe(step, inputs)


def _folder(stage: Stage, role: str, origin: From) -> str:
    """The folder of an input that matters: what a stage does not read must not enter its key."""
    if origin.folder:
        return origin.folder
    if stage.kind == "per_shard":
        if role == stage.reads[0]:
            return f"{stage.reads[1]}/" if stage.reads[1] else ""
        if role in stage.aligned:
            return f"{stage.aligned[role]}/"
    return ""
