"""A step of a chain, and the recipe it becomes once its inputs are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from llmcore.artifacts.keys import key_of
from llmcore.artifacts.manifest import ArtifactRef, Manifest, Output, manifest_of, outputs_digest
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
    label:   put behind the generation in the names of the shards that this step makes from raw files
             ("g000.warc.gz" -> "g000-httpd-00000.parquet"), so that the shards of several sources can lie side by side.
    """

    name: str
    stage: Stage
    params: Any
    inputs: Mapping[str, From] = field(default_factory=dict)
    outside: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


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
class Recipe:
    """A step with its inputs resolved: everything that decides what comes out, and hence its key."""

    step: Step
    sources: Mapping[str, tuple[Manifest, ...]]
    files: Mapping[str, Mapping[str, Output]]

    @property
    def stage(self) -> Stage:
        return self.step.stage

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "params": plain_params(self.step.params),
            "inputs": {role: outputs_digest(outputs) for role, outputs in self.files.items()},
        }

    @property
    def key(self) -> str:
        return key_of(self.identity)


def plain_params(params: Any) -> Any:
    """Parameters as plain JSON data."""
    if isinstance(params, BaseModel):
        return params.model_dump(mode="json")
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        return dataclasses.asdict(params)
    return params


def resolve(store: Store, step: Step, done: Mapping[str, ArtifactRef]) -> Recipe:
    """The recipe of a step whose inputs are built. KeyError names a step that is not."""
    sources: dict[str, tuple[Manifest, ...]] = {}
    files: dict[str, dict[str, Output]] = {}
    for role, origin in step.inputs.items():
        found = tuple(manifest_of(store, done[name]) for name in origin.steps)
        sources[role] = found
        chosen: dict[str, Output] = {}
        for name, manifest in zip(origin.steps, found, strict=True):
            for file, output in manifest.outputs.items():
                if not file.startswith(_folders(step.stage, role, origin)):
                    continue
                if origin.generation is not None and generation_of(file) != origin.generation:
                    continue
                label = f"{name}/{file}" if origin.labelled else file
                if label in chosen:
                    raise LlmcoreError(f"{step.name}: two inputs of role {role!r} have a file {label!r}")
                chosen[label] = output
        files[role] = chosen
    return Recipe(step, sources, files)


def _folders(stage: Stage, role: str, origin: From) -> str | tuple[str, ...]:
    """The folder of an input that matters: what a stage does not read must not enter its key."""
    if origin.folder:
        return origin.folder
    if stage.kind == "per_shard":
        if role == stage.reads[0]:
            return f"{stage.reads[1]}/" if stage.reads[1] else ""
        if role in stage.aligned:
            return f"{stage.aligned[role]}/"
    return ""
