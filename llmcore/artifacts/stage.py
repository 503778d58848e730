"""The contract between a stage and whoever runs it.

A stage knows about its data and nothing else: no paths of the store, no caching, no Prefect. It is either

* **per shard**: a pure function from one Parquet shard (and side inputs) to tables, memoised shard by shard, or
* **global**: a function from whole artifacts to files in a folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # so that model and training, which declare stages too, need neither polars nor pydantic
    import polars as pl


class Files(Protocol):
    """An input artifact (or the part of it that a stage asked for) as verified, read-only local files."""

    def names(self, prefix: str = "") -> Sequence[str]:
        """Sorted file names that start with the prefix."""

    def path(self, name: str) -> Path:
        """Fetch one file, verify it against its digest, and say where it lies."""

    def table(self, prefix: str = "") -> pl.DataFrame:
        """All Parquet files under a prefix, in name order, as one frame."""

    def tables(self, prefix: str = "") -> Iterator[tuple[str, pl.DataFrame]]:
        """The same one file at a time, with its name."""


@dataclass(frozen=True)
class ShardResult:
    """What a per-shard function made of one shard.

    outputs: folder -> table, e.g. {"kept": …, "dropped": …}. A table becomes `<folder>/<shard name>`; an iterator of
             tables becomes `<folder>/<shard stem>-00000.parquet`, … .
    metrics: plain numbers, summed over the shards.
    """

    outputs: Mapping[str, pl.DataFrame | Iterator[pl.DataFrame]]
    metrics: Mapping[str, int | float] = field(default_factory=dict)


class Run(Protocol):
    """What a global function may use of its surroundings."""

    @property
    def key(self) -> str:
        """The recipe's key: what somebody has to name who wants to go on from this run."""

    @property
    def out(self) -> Path:
        """Empty local folder: every file left in it becomes an output of the artifact, under its relative name."""

    @property
    def scratch(self) -> Path:
        """Local folder, never an output; it outlives a crash (training checkpoints)."""

    @property
    def outside(self) -> Mapping[str, Any]:
        """Where the outside world lies today (paths, ports): never part of the key."""

    @property
    def generation(self) -> int:
        """Number of the generation of shards that a fetching stage begins with."""

    def lineage(self) -> Sequence[Mapping[str, Any]]:
        """Every manifest behind the inputs in chain order: stage, version, parameters, inputs, outputs, metrics."""

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Say how far the work is; also renews the lease and raises if it was lost."""

    def carry(self, role: str, prefix: str = "") -> None:
        """Make an input's files (those under `prefix`) outputs of this artifact under their names; none is copied."""

    def keep_scratch(self) -> None:
        """Copy `scratch` to the store when that lies elsewhere, so that another machine can go on from it."""

    def scratch_of(self, key: str, name: str) -> Path | None:
        """A local path of a file in the scratch of another recipe, fetched from the store; None if it is not there."""


MODULE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+(?::\w+)?")


@dataclass(frozen=True)
class Stage:
    """One stage: its name, version, parameters and function.

    version:   raise it whenever the same input would give other output bytes.
    function:  "module:name", imported only when the stage runs, so that looking at artifacts needs no torch. Per shard:
               (documents: DataFrame | Path, params, **side inputs) -> ShardResult; global: (inputs: role -> Files,
               params, run) -> metrics.
    kind:      "per_shard" or "global".
    role:      what its artifact is to those who ask for it by meaning ("fetch", "ingest", "split", "tokens", …); "" for
               the rest. Whoever looks for an artifact asks for its role, never for a stage's name.
    reads:     for per-shard stages: the role whose files are the shards, and the folder they lie in ("" = all files).
    reads_paths: the function gets each shard as a Path (whatever the format), not as a polars frame.
    aligned:   roles of which a shard sees only the file of its own name: role -> folder. Missing file = error.
    data:      "module:name" of a function (params) -> {name: path} of the files and folders beside the parameters that
               decide what comes out (a bundled model, the tables of a package); they enter the key by digest.
    broadcast: roles handed whole to every shard, as Files.
    named:     the function wants the shard's name too (keyword `shard`), which then enters the memo's key.
    tells_lineage: the outputs speak of the recipes behind them, so that these enter the key, not only their bytes.
    partition: output folders whose row counts must add up to the rows read; () where rows are not documents.
    constants: keyword arguments that the function always gets: what makes two stages of one function.
    accept:    per shard: "module:name" of what judges the whole before it is committed: (made: Files, read: Files of
               the artifact that the shards lie in, params, metrics) -> None; a LlmcoreError refuses it.
    limits:    parameters that decide whether there is an artifact, never what is in a shard: they are in the artifact's
               key but in no memo's, so that another limit computes no shard again.
    """

    name: str
    version: int
    params: type
    function: str
    kind: str = "global"
    role: str = ""
    reads: tuple[str, str] = ("documents", "kept")
    reads_paths: bool = False
    aligned: Mapping[str, str] = field(default_factory=dict)
    broadcast: tuple[str, ...] = ()
    named: bool = False
    tells_lineage: bool = False
    partition: tuple[str, ...] = ("kept", "dropped")
    data: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    accept: str = ""
    limits: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        function = _imported(self.function)
        return partial(function, **self.constants) if self.constants else function

    def check(self, made: Files, read: Files, params: Any, metrics: Mapping[str, Any]) -> None:
        """Let the stage judge what its shards came to. Raises LlmcoreError if it is refused."""
        if self.accept:
            _imported(self.accept)(made, read, params, metrics)

    @property
    def modules(self) -> tuple[str, ...]:
        """Where its code begins: the function's module, and modules that its constants name (a program it starts)."""
        named = (value for value in self.constants.values() if isinstance(value, str) and MODULE.fullmatch(value))
        return tuple(value.partition(":")[0] for value in (self.function, *named))

    def data_files(self, params: Any) -> Mapping[str, Path]:
        """Name -> file or folder of the data that decides what the stage makes with these parameters."""
        found: Mapping[str, Path] = _imported(self.data)(params) if self.data else {}
        return found


def _imported(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
