"""Another training's checkpoint as an artifact, from which a training goes on: its bytes enter that one's key.

A training whose spread changed (micro-batch, processes, threads) has another key, and so does not see the checkpoints
of the one before. Only who names that one goes on from it, and lineage then shows both.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcore.artifacts.keys import file_digest
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.errors import LlmcoreError
from llmcore.training.marker import FOLDER, Marker


@dataclass(frozen=True)
class CheckpointParams:
    """Which checkpoint. key: of the training that saved it; step: after which; digest: over its marker and bytes."""

    key: str
    step: int
    digest: str


def take(inputs: Mapping[str, Files], params: CheckpointParams, run: Run) -> dict[str, Any]:
    """Copy the checkpoint out of the other training's scratch: checkpoint.json (its marker) and the files it names.

    Raises LlmcoreError where it is gone, or its bytes are not those that it was found with.
    """
    name = f"step-{params.step:08d}"
    where = f"checkpoint {name} of training {params.key[:12]}"
    _fetch(run, params.key, f"{name}.json", "checkpoint.json", where)
    try:
        marker = Marker.read((run.out / "checkpoint.json").read_bytes())
    except ValueError as error:
        raise LlmcoreError(f"{where} is damaged: {error}; name another with --resume") from error
    if marker.digest != params.digest:
        raise LlmcoreError(f"{where} was saved again meanwhile; run again")
    for file, digest in marker.files.items():
        _fetch(run, params.key, f"{name}/{file}", file, where)
        if file_digest(run.out / file) != digest:
            raise LlmcoreError(
                f"{where} is damaged: {file} is not what was saved; delete runs/{params.key}/scratch/{FOLDER}/"
                f"{name}.json from the store and run again, to go on from the one before"
            )
    return {"step": marker.step, "trained": marker.recipe}


def _fetch(run: Run, key: str, file: str, name: str, where: str) -> None:
    path = run.scratch_of(key, f"{FOLDER}/{file}")
    if path is None:
        raise LlmcoreError(f"{where} is no longer there ({file}); run again to take the one after it")
    shutil.copyfile(path, run.out / name)


STAGE = Stage(
    "checkpoint",
    version=1,
    role="checkpoint",
    params=CheckpointParams,
    function="llmcore.training.resume:take",
)
