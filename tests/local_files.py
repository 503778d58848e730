"""`Files` and `Run` over plain folders: what a stage function needs when it is tested without a store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from llmcore.artifacts.shards import shard_order


@dataclass
class LocalFiles:
    root: Path

    def names(self, prefix: str = "") -> Sequence[str]:
        found = (str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())
        return sorted((name for name in found if name.startswith(prefix)), key=shard_order)

    def path(self, name: str) -> Path:
        return self.root / name

    def table(self, prefix: str = "") -> pl.DataFrame:
        return pl.concat([table for _, table in self.tables(prefix)])

    def tables(self, prefix: str = "") -> Iterator[tuple[str, pl.DataFrame]]:
        for name in self.names(prefix):
            yield name, pl.read_parquet(self.root / name)


@dataclass
class LocalRun:
    root: Path
    outside: Mapping[str, Any] = field(default_factory=dict)
    manifests: Sequence[Mapping[str, Any]] = ()
    inputs: Mapping[str, LocalFiles] = field(default_factory=dict)
    generation: int = 0
    key: str = "0" * 64

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(parents=True, exist_ok=True)

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def lineage(self) -> Sequence[Mapping[str, Any]]:
        return self.manifests

    def progress(self, done: float, total: float, text: str = "") -> None:
        pass

    def carry(self, role: str, prefix: str = "") -> None:
        files = self.inputs[role]
        for name in files.names(prefix):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files.path(name), self.out / name)

    def keep_scratch(self) -> None:
        pass

    def scratch_of(self, key: str, name: str) -> Path | None:
        path = self.root.parent / key / "scratch" / name
        return path if path.is_file() else None
