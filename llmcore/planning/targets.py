"""What `auto` means: the values that hang on the machine, made concrete once, before any key is computed.

A parameter that may be `auto` is resolved against the target that the configuration declares (`execution.device`, by
default this machine), by its name: `device` becomes the target's `device`. The concrete value enters the key, so a run
means the same to every worker and to whoever goes on with it; resolving what is concrete changes nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.errors import UsageError
from llmcore.planning.config import Execution, PipelineConfig

AUTO = "auto"
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # Nvidia, AMD, either under WSL


@dataclass(frozen=True)
class Target:
    """The kind of machine that a run is meant for. device: "cpu" or "cuda"."""

    device: str

    def plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def target_of(execution: Execution) -> Target:
    """The declared target; a look at this machine where that is what is declared."""
    return this_machine() if execution.device == "this machine" else Target(execution.device)


def this_machine() -> Target:
    """torch decides whether a GPU is of use; without a driver there is no need to ask, and `plan` is quick."""
    if not any(Path(driver).exists() for driver in GPU_DRIVERS):
        return Target("cpu")
    import torch

    return Target("cuda" if torch.cuda.is_available() else "cpu")


def resolved(config: PipelineConfig, target: Target | None = None) -> PipelineConfig:
    """The configuration with nothing left `auto`; target: by default the one that it declares.

    Raises UsageError for an `auto` that no target has a value for.
    """
    open_values = {
        section: [name for name, value in _values(getattr(config, section)).items() if value == AUTO]
        for section in type(config).model_fields
        if section != "execution"
    }
    open_values = {section: names for section, names in open_values.items() if names}
    if not open_values:
        return config
    known = (target or target_of(config.execution)).plain()
    changed = {}
    for section, names in open_values.items():
        for name in names:
            if name not in known:
                raise UsageError(f"{section}.{name}: auto: no target says what that is; give a value")
        changed[section] = _replaced(getattr(config, section), {name: known[name] for name in names})
    return config.model_copy(update=changed)


def _values(section: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return dict(section) if hasattr(section, "model_fields_set") else {}


def _replaced(section: Any, values: dict[str, Any]) -> Any:
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return dataclasses.replace(section, **values)
    return section.model_copy(update=values)
