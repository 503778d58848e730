"""What `auto` means: the values that hang on the machine, made concrete once, before any key is computed.

A parameter that may be `auto` is resolved against the target that the configuration declares (`execution.device`, by
default this machine), by its name: `device` becomes the target's `device`. The concrete value enters the key. The run
that comes first writes its target down in the store, under the model's name; every later one, on whatever machine it
goes on, reads it there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.artifacts.keys import with_check, without_check
from llmcore.artifacts.roots import TARGETS
from llmcore.artifacts.store import Store
from llmcore.errors import LlmcoreError, UsageError
from llmcore.model.precision import processor_precision
from llmcore.planning.config import Execution, PipelineConfig

AUTO = "auto"
THIS_MACHINE = "this machine"
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # Nvidia, AMD, either under WSL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """The kind of machine that a run is meant for. device: "cpu" or "cuda"; precision: "bf16" or "fp32"."""

    device: str
    precision: str

    def plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def target_of(execution: Execution) -> Target:
    """The declared target; a look at this machine where that is what is declared."""
    return this_machine() if execution.device == THIS_MACHINE else machine_with(execution.device)


def machine_with(device: str) -> Target:
    """A machine of that kind: every GPU that trains today multiplies in bf16; of processors this one is asked."""
    return Target(device, "bf16" if device == "cuda" else processor_precision())


def this_machine() -> Target:
    """torch decides whether a GPU is of use; without a driver there is no need to ask, and `plan` is quick."""
    if any(Path(driver).exists() for driver in GPU_DRIVERS):
        import torch

        if torch.cuda.is_available():
            return Target("cuda", "bf16" if torch.cuda.is_bf16_supported() else "fp32")
    return machine_with("cpu")


def decided(store: Store, config: PipelineConfig) -> PipelineConfig:
    """The configuration with nothing left `auto`: as the first run in this store wrote it down, else as of now."""
    if not _open_values(config):
        return config
    return resolved(config, _written(store, config))


def decide(store: Store, config: PipelineConfig) -> PipelineConfig:
    """As `decided`, and writes down what was not yet: once, however many begin at the same time.

    A store that cannot be written to, and whose runs are all cached, needs no such record.
    """
    if not _open_values(config):
        return config
    now = target_of(config.execution)
    if _written(store, config) is None:
        try:
            store.commit(_record_name(config), with_check(now.plain()))
        except UsageError as error:
            log.warning("%s; what `auto` means could not be written down", error)
            return resolved(config, now)
    first = _written(store, config) or now
    if first != now:
        log.warning(
            "%s began on a machine with %s, %s, and goes on so (this one: %s, %s); execution.device says otherwise",
            config.name,
            *(first.device, first.precision, now.device, now.precision),
        )
    return resolved(config, first)


def resolved(config: PipelineConfig, target: Target | None = None) -> PipelineConfig:
    """The configuration with nothing left `auto`; target: by default the one that it declares.

    Raises UsageError for an `auto` that no target has a value for.
    """
    open_values = _open_values(config)
    if not open_values:
        return config
    declared = target or target_of(config.execution)
    changed = {}
    for section, names in open_values.items():
        values = getattr(config, section)
        device = getattr(values, "device", AUTO)
        known = (declared if device in (AUTO, declared.device) else machine_with(device)).plain()
        for name in names:
            if name not in known:
                raise UsageError(f"{section}.{name}: auto: no target says what that is; give a value")
        changed[section] = _replaced(values, {name: known[name] for name in names})
    return config.model_copy(update=changed)


def _open_values(config: PipelineConfig) -> dict[str, list[str]]:
    """Section -> names of its values that are `auto`."""
    found = {
        section: [name for name, value in _values(getattr(config, section)).items() if value == AUTO]
        for section in type(config).model_fields
        if section != "execution"
    }
    return {section: names for section, names in found.items() if names}


def _record_name(config: PipelineConfig) -> str:
    return f"{TARGETS}/{config.name}/{config.execution.device.replace(' ', '-')}.json"


def _written(store: Store, config: PipelineConfig) -> Target | None:
    name = _record_name(config)
    record = store.record(name)
    if record is None:
        return None
    try:
        return Target(**_texts(without_check(record)))
    except (ValueError, TypeError) as error:
        raise LlmcoreError(
            f"damaged record {name} in {store.uri}: {error}; delete it, and give train.device and train.precision what "
            "they were, or training begins anew"
        ) from error


def _texts(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in record.items()}


def _values(section: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return dict(section) if hasattr(section, "model_fields_set") else {}


def _replaced(section: Any, values: dict[str, Any]) -> Any:
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return dataclasses.replace(section, **values)
    return section.model_copy(update=values)
