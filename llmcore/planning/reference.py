"""The configuration as Markdown tables, from the same models that check it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llmcore.planning.config import PipelineConfig

LONGEST_DEFAULT = 50  # characters; more would widen the table beyond reading


def configuration_tables() -> str:
    """A section of the page for the top level, each kind of source and each stage, with key, default and meaning."""
    schema = PipelineConfig.model_json_schema()
    models = schema["$defs"]
    sections = {name: models.get(_model(entry.get("$ref"))) for name, entry in schema["properties"].items()}
    top = {name: entry for name, entry in schema["properties"].items() if sections[name] is None}
    kinds: dict[str, list[str]] = {}
    for kind, model in schema["properties"]["sources"]["items"]["discriminator"]["mapping"].items():
        kinds.setdefault(_model(model), []).append(f"`{kind}`")
    parts = {"Top level": schema | {"properties": top}}
    parts |= {f"`sources`, kind {', '.join(names)}": models[model] for model, names in kinds.items()}
    parts |= {f"`{name}`": model for name, model in sections.items() if model is not None and model["properties"]}
    return "\n".join(f"## {title}\n\n{_table(model)}\n" for title, model in parts.items())


def _model(reference: str | None) -> str:
    return (reference or "").rsplit("/", 1)[-1]


def _table(model: Mapping[str, Any]) -> str:
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *_rows(model)])


def _rows(model: Mapping[str, Any]) -> Iterator[str]:
    for name, field in model["properties"].items():
        if "default" in field:
            default = json.dumps(field["default"], ensure_ascii=False)
        else:
            default = "required" if name in model.get("required", ()) else "of the machine"
        if len(default) > LONGEST_DEFAULT:
            default = default[: LONGEST_DEFAULT - 1] + "…"
        meaning = str(field.get("description", "")).replace("|", "\\|")
        yield f"| `{name}` | `{default}` | {meaning} |"
