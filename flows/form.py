"""The form of a flow: the dozen things that a person sets as parameters of their own, the rest in `config`.

A flow's function takes a configuration; `with_form` gives it the parameters below, which stand as fields in Prefect's
UI and after `prefect deployment run … -p`. What is left empty is as the configuration says. `config` names a file, read
when the run begins, so that a deployment follows its file; or it is the whole configuration.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import gcd
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any

import yaml
from prefect.runtime import flow_run
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from llmcore.artifacts.manifest import ArtifactRef
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.config import PipelineConfig, check, load
from llmcore.release.quantise import Format
from llmcore.training.params import TrainParams

Done = dict[str, ArtifactRef]
Config = str | PipelineConfig
Nothing = SkipJsonSchema[None]  # so that a field left empty is one input in the UI, not a choice between two
Text = str | Nothing
Number = Annotated[int, Field(ge=0)] | Nothing

QUICKSTART = "quickstart"
FFN_MULTIPLE = 32  # a matrix whose rows divide by it can be quantised
# what is left as it is in the form is sent as it is, and null would be refused there: 0, "" and [] are "not asked for"
FIELDS: Mapping[str, tuple[Any, Any, str]] = {
    "name": (Text, "", "of the model; the ref it is published under"),
    "store": (Text, "", "file:///folder or s3://bucket/prefix"),
    "sources": (Text, "", "YAML, a list: - {kind: text, name: notes, path: /data/notes, licence: CC-BY-4.0}"),
    "languages": (Text, "", "codes of those that are kept, with commas: en, de"),
    "vocabulary": (Number, 0, "tokens; 0: as the configuration says"),
    "window": (Number, 0, "tokens that the model reads at once; 0: as the configuration says"),
    "epochs": (Annotated[float, Field(ge=0)] | Nothing, 0.0, "passes over the text; 0: as the configuration says"),
    "steps": (Number, 0, "of the training, instead of epochs; 0: as the configuration says"),
    "layers": (Number, 0, "blocks of the model; 0: as the configuration says"),
    "width": (Number, 0, "of the model, to which heads and feed-forward keep their proportion; 0: as configured"),
    "formats": (list[Format] | Nothing, [], "of the GGUF files"),
}
CONFIG = Annotated[str, Field(title="file")] | Annotated[PipelineConfig, Field(title="everything")]
CONFIG_MEANS = (
    "what is left empty above: a configuration file as the worker sees it (read when the run begins), `quickstart` for "
    "the embedded one, or a whole configuration"
)


def with_form(work: Callable[..., Done]) -> Callable[..., Done]:
    """The function that a flow is made of: the form's parameters, the function's own, and `config` last."""

    def filled(**given: Any) -> Done:
        asked = {name: given.pop(name, None) for name in FIELDS}
        config = configuration(given.pop("config", QUICKSTART), asked)
        return work(config=config, **{name: None if value == "" else value for name, value in given.items()})

    own = [value for name, value in inspect.signature(work, eval_str=True).parameters.items() if name != "config"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *(
            inspect.Parameter(name, keyword, default=empty, annotation=kind)
            for name, (kind, empty, _) in FIELDS.items()
        ),
        *(value.replace(kind=keyword, default="" if value.default is None else value.default) for value in own),
        inspect.Parameter("config", keyword, default=QUICKSTART, annotation=CONFIG),
    ]
    for attribute in ("__name__", "__qualname__", "__module__"):
        setattr(filled, attribute, getattr(work, attribute))
    filled.__doc__ = _described(inspect.getdoc(work) or "")
    filled.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return filled


def _described(doc: str) -> str:
    """A flow's docstring with what each field of the form means, which is where Prefect looks for it."""
    head, _, own = doc.partition("\nArgs:\n")
    lines = [f"    {name}: {means}" for name, (_, _, means) in FIELDS.items()]
    return "\n".join([head.rstrip(), "", "Args:", *lines, *filter(None, [own.rstrip()]), f"    config: {CONFIG_MEANS}"])


def run_name() -> str:
    """A flow run is named after its model and the minute it was due."""
    when = flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{model_name(flow_run.parameters)} {when:%Y-%m-%d %H:%M}"


def model_name(given: Mapping[str, Any]) -> str:
    """Of a flow's parameters; where its file cannot be read, the file's own name, because the run will say so."""
    config = given.get("config") or QUICKSTART
    if given.get("name"):
        return str(given["name"])
    try:
        return configuration(config, {}).name
    except LlmcoreError:
        return Path(str(config)).stem


def configuration(config: Config, asked: Mapping[str, Any]) -> PipelineConfig:
    """The configuration with what was asked for in its place.

    asked: field of the form -> value; 0, "", [] or None where it was left as it was.
    Raises UsageError in one line naming the field.
    """
    folder = None
    if isinstance(config, str):
        path = None if config.strip() in ("", QUICKSTART) else _found(config.strip())
        config, folder = load(path), path.parent if path is not None else None
    changes = _changes({name: value for name, value in asked.items() if value}, config)
    if not changes:
        return config
    return check(_merged(config.model_dump(exclude_unset=True), changes), "form", folder)


def _found(config: str) -> Path:
    """The file, here or in the folder where the worker was started."""
    path = Path(config).expanduser()
    folders = [Path.cwd(), Path(os.environ.get("PWD") or Path.cwd())]  # a worker starts each run in a folder of its own
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    where = "" if path.is_absolute() else f" in {' or '.join(dict.fromkeys(map(str, folders)))}"
    raise UsageError(
        f"config: no file {config}{where} on {gethostname()}, where the run takes place; give its whole path there"
    )


def _changes(asked: Mapping[str, Any], config: PipelineConfig) -> dict[str, Any]:
    changes: dict[str, Any] = {name: asked[name] for name in ("name", "store") if name in asked}
    if "sources" in asked:
        changes["sources"] = _sources(asked["sources"])
    if "languages" in asked:
        changes["language"] = {"languages": [code.strip() for code in asked["languages"].split(",") if code.strip()]}
    if "vocabulary" in asked:
        changes["tokenizer"] = {"vocab_size": asked["vocabulary"]}
    if "window" in asked:
        changes["pack"] = {"window": asked["window"]}
    if "formats" in asked:
        changes["quantise"] = {"formats": asked["formats"]}
    train = {name: asked[name] for name in ("epochs", "steps", "layers") if name in asked}
    if "epochs" in asked:
        train["steps"] = asked.get("steps", 0)  # steps of the configuration would win
    if "width" in asked:
        train |= shape_of(asked["width"], config.train)
    return changes | ({"train": train} if train else {})


def shape_of(width: int, like: TrainParams) -> dict[str, int]:
    """A model of this width in the proportions of another: heads of the same size, a feed-forward as much wider.

    UsageError if heads of that size do not fill the width.
    """
    head = like.width // like.heads
    if width % head:
        nearest = max(head, round(width / head) * head)
        raise UsageError(f"form: width: {width} is no multiple of a head's {head}; take {nearest}")
    heads = width // head
    wide = like.ffn_width * width / like.width
    return {
        "width": width,
        "heads": heads,
        "kv_heads": gcd(heads, like.kv_heads),
        "ffn_width": max(FFN_MULTIPLE, round(wide / FFN_MULTIPLE) * FFN_MULTIPLE),
    }


def _sources(text: str) -> list[Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"form: sources: not YAML: {' '.join(str(error).split())}") from error
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise UsageError("form: sources: must be a list such as - {kind: text, name: notes, path: /data/notes}")
    return found


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with each change in its place; a section keeps its other keys."""
    merged = dict(config)
    for name, value in changes.items():
        merged[name] = _merged(merged.get(name, {}), value) if isinstance(value, dict) else value
    return merged
