"""What a person sets in the form of a flow, and what is made of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.callables import parameter_schema

from flows.form import FIELDS, configuration, model_name, shape_of
from flows.pipeline import pipeline
from flows.refresh import refresh
from llmcore.errors import UsageError
from llmcore.planning.config import load
from llmcore.training.params import TrainParams
from tests.small import small_config


def test_the_dozen_fields_come_first_and_the_rest_is_folded_into_one() -> None:
    schema = parameter_schema(pipeline).model_dump()
    by_place = sorted(schema["properties"], key=lambda name: schema["properties"][name]["position"])
    assert by_place == [*FIELDS, "until", "force", "reset_head", "resume", "config"]
    assert not schema["required"]
    for name in FIELDS:
        assert schema["properties"][name]["description"], name
        assert "anyOf" not in schema["properties"][name], f"{name}: one input, not a choice"
        assert schema["properties"][name]["default"] is not None, f"{name}: the form sends it, and null is refused"
    kinds = {name: schema["properties"][name]["type"] for name in ("sources", "window", "epochs", "formats")}
    assert kinds == {"sources": "string", "window": "integer", "epochs": "number", "formats": "array"}
    assert schema["properties"]["config"]["default"] == "quickstart"
    assert "workers" not in str(schema["properties"])
    assert list(inspect.signature(refresh).parameters) == [*FIELDS, "config"]


def test_a_file_is_read_when_it_is_asked_for_and_the_form_goes_before_it(tmp_path: Path) -> None:
    path = small_config(tmp_path)
    asked = {"name": "other", "window": 32, "epochs": 2.5, "vocabulary": 700, "languages": "en, de", "layers": 3}
    config = configuration(str(path), asked | {"formats": ["q8_0"], "sources": None, "store": ""})
    assert (config.name, config.pack.window, config.tokenizer.vocab_size) == ("other", 32, 700)
    assert (config.train.epochs, config.train.steps, config.train.layers) == (2.5, 0, 3)
    assert config.language.languages == ("en", "de")
    assert config.quantise.formats == ("q8_0",)
    assert config.store == load(path).store
    assert config.train.width == load(path).train.width
    path.write_text(path.read_text().replace("name: small", "name: changed"))
    assert configuration(str(path), {}) == load(path)
    assert configuration(str(path), {}).name == "changed"


def test_sources_are_one_field_of_yaml_relative_to_the_file(tmp_path: Path) -> None:
    path = small_config(tmp_path)
    text = "- {kind: text, name: mine, path: texts, licence: MIT}\n- {kind: jsonl, name: more, path: /data/more.jsonl}"
    (first, second) = configuration(str(path), {"sources": text}).sources
    assert (first.name, first.path, second.path) == ("mine", str(tmp_path / "texts"), "/data/more.jsonl")
    assert configuration(str(path), {"sources": "{kind: text, name: one, path: texts}"}).sources[0].name == "one"
    for wrong, said in (("text", "must be a list"), ("- {kind: [", "not YAML"), ("- {kind: tex}", "sources")):
        with pytest.raises(UsageError, match=said):
            configuration(str(path), {"sources": wrong})


def test_a_width_brings_heads_and_feed_forward_with_it() -> None:
    like = TrainParams(width=192, heads=3, kv_heads=1, ffn_width=512)
    assert shape_of(384, like) == {"width": 384, "heads": 6, "kv_heads": 1, "ffn_width": 1024}
    with pytest.raises(UsageError, match="width: 200 is no multiple of a head's 64; take 192"):
        shape_of(200, like)


def test_a_file_that_is_not_there_is_told_with_the_machine_and_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"config: no file mine\.yaml in .* give its whole path there"):
        configuration("mine.yaml", {})
    path = small_config(tmp_path, name="mine")
    monkeypatch.setenv("PWD", str(tmp_path))  # where the worker was started
    assert configuration("mine.yaml", {}) == load(path)


@pytest.mark.parametrize(
    ("given", "name"),
    [({}, "quickstart"), ({"name": "told"}, "told"), ({"config": "no/such/file.yaml"}, "file")],
)
def test_a_run_is_named_after_its_model(given: dict[str, Any], name: str) -> None:
    assert model_name(given) == name


def test_a_whole_configuration_is_one_too(tmp_path: Path) -> None:
    path = small_config(tmp_path)
    empty = dict.fromkeys(FIELDS)  # as Prefect hands over what was left so
    checked = pipeline.validate_parameters({**empty, "config": yaml.safe_load(path.read_text()), "steps": 7})
    config = configuration(checked["config"], {"steps": checked["steps"]})
    assert config.train.steps == 7
    assert model_name(checked) == "small"
