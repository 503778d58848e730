"""A configuration means the same however it comes, and what is wrong with it is one line that names file and key."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from llmcore.artifacts.recipe import own_identity, plain_params
from llmcore.errors import UsageError
from llmcore.planning.chain import build
from llmcore.planning.config import CrawlSource, FileSource, PipelineConfig, check, load, quickstart
from llmcore.selection.decontaminate import BUNDLED
from llmcore.text.pii_params import NAMED_ENTITIES, USUAL_ENTITIES
from llmcore.training.params import TrainParams
from tests.small import small_config

STAGES = {step.stage.name: step.stage for step in build(quickstart()).steps.values()}
SECTIONS = {field.annotation for field in PipelineConfig.model_fields.values() if isinstance(field.annotation, type)}
PARAMETERS = sorted(
    {stage.params for stage in STAGES.values()} | {s for s in SECTIONS if s is not str} | {CrawlSource, FileSource},
    key=lambda kind: kind.__name__,
)

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12)
KNOWN: dict[str, st.SearchStrategy[Any]] = {  # what no type says
    "name": names,
    "entities": st.lists(st.sampled_from([*USUAL_ENTITIES, *NAMED_ENTITIES]), max_size=5),
    "benchmarks": st.lists(st.sampled_from(BUNDLED), min_size=1, max_size=3, unique=True),
    "start_urls": st.lists(names.map(lambda name: f"https://{name}.example/"), min_size=1, max_size=3),
    "files": st.dictionaries(names, st.just("0" * 64), min_size=1, max_size=3),
    "licence": st.sampled_from(["Apache-2.0", "CC0-1.0"]),
    "micro_batch": st.just(8),
    "batch": st.integers(1, 4).map(lambda number: 8 * number),
    "processes": st.just(1),
    "heads": st.just(4),
    "kv_heads": st.sampled_from([1, 2, 4]),
    "width": st.integers(1, 40).map(lambda number: 8 * number),
    "formats": st.lists(st.sampled_from(["f16", "q8_0", "q4_0"]), min_size=1, max_size=4),
}


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Plain data such as YAML gives for a type; bounds are left to the model."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of([values(argument) for argument in arguments])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3)
    if origin in (dict, Mapping):
        return st.dictionaries(names, values(arguments[1]), max_size=3)
    if annotation in PARAMETERS or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return sections(annotation)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 300) | st.integers(0, 1 << 30),
        float: st.floats(0, 1) | st.integers(0, 1) | st.floats(0, 1e9),
        str: names,
        NoneType: st.none(),
    }
    return plain[annotation]


def sections(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the keys of a parameter class, with values of their kinds."""
    hints = get_type_hints(kind, include_extras=True)
    fields = kind.model_fields if issubclass(kind, BaseModel) else kind.__dataclass_fields__
    required = [name for name in fields if issubclass(kind, BaseModel) and kind.model_fields[name].is_required()]
    given = {name: KNOWN[name] if name in KNOWN else values(hints[name]) for name in fields}
    return st.fixed_dictionaries(
        {name: given[name] for name in required},
        optional={name: strategy for name, strategy in given.items() if name not in required},
    )


def valid(kind: Any, data: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(data)
    except (ValidationError, UsageError):
        assume(False)


@pytest.mark.parametrize("kind", PARAMETERS, ids=lambda kind: kind.__name__)
def test_every_parameter_class_says_the_same_after_a_dump(kind: Any) -> None:
    adapter = TypeAdapter(kind)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(sections(kind))
    def holds(data: dict[str, Any]) -> None:
        first = valid(kind, data)
        again = adapter.validate_python(json.loads(json.dumps(adapter.dump_python(first, mode="json"))))
        assert again == first
        assert plain_params(again) == plain_params(first)
        assert json.dumps(plain_params(again)) == json.dumps(plain_params(first)), "1 and 1.0 have two keys"

    holds()


@pytest.mark.parametrize("kind", PARAMETERS, ids=lambda kind: kind.__name__)
def test_a_default_says_the_same_whether_it_is_given_or_not(kind: Any) -> None:
    adapter = TypeAdapter(kind)

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(sections(kind))
    def holds(data: dict[str, Any]) -> None:
        first = valid(kind, data)
        schema = adapter.json_schema()
        assert adapter.validate_python(filled(schema, schema.get("$defs", {}), data)) == first

    holds()


def filled(schema: Any, models: Any, data: Any) -> Any:
    """Data with the schema's defaults where it says nothing: what a form that was made from the schema sends."""
    schema = resolved(schema, models)
    if isinstance(data, list) and "items" in schema:
        kinds = schema["items"].get("discriminator", {}).get("mapping")
        return [
            filled({"$ref": kinds[item["kind"]]} if kinds and "kind" in item else schema["items"], models, item)
            for item in data
        ]
    if not isinstance(data, dict) or "properties" not in schema:
        return data
    complete = dict(data)
    for name, field in schema["properties"].items():
        if name in data:
            complete[name] = filled(field, models, data[name])
        elif "default" in field:
            complete[name] = field["default"]
    return complete


def resolved(schema: Any, models: Any) -> Any:
    return models[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema


def identities(config: PipelineConfig) -> dict[str, Any]:
    """All of each step's identity that its inputs do not decide, and what feeds it."""
    return {
        step.name: (own_identity(step.stage, step.params), step.inputs, step.label)
        for step in build(config).steps.values()
    }


def through_json(config: PipelineConfig) -> PipelineConfig:
    return PipelineConfig.model_validate(json.loads(config.model_dump_json()))


def through_a_form(config: PipelineConfig) -> PipelineConfig:
    schema = PipelineConfig.model_json_schema()
    return PipelineConfig.model_validate(filled(schema, schema["$defs"], config.model_dump(mode="json")))


def through_a_form_with_little(config: PipelineConfig) -> PipelineConfig:
    """A form that sends the schema's defaults for all that the YAML did not say."""
    schema = PipelineConfig.model_json_schema()
    given = config.model_dump(mode="json", exclude_unset=True)
    return PipelineConfig.model_validate(filled(schema, schema["$defs"], given))


def through_yaml(config: PipelineConfig) -> PipelineConfig:
    return check(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))


def through_javascript(config: PipelineConfig) -> PipelineConfig:
    """JavaScript has one kind of number: 1.0 comes back as 1."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, float) and value == math.floor(value) else value

    return PipelineConfig.model_validate(plain(config.model_dump(mode="json")))


def through_prefect(config: PipelineConfig) -> PipelineConfig:
    from flows.pipeline import pipeline

    sent = json.loads(json.dumps(pipeline.serialize_parameters({"config": config})))
    received = pipeline.validate_parameters(sent)["config"]
    assert isinstance(received, PipelineConfig)
    return received


WAYS = [
    through_json,
    through_yaml,
    through_a_form,
    through_a_form_with_little,
    through_javascript,
    through_prefect,
]
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a published name": {"publish": {"name": "other"}},
    "entities out of order": {"pii": {"entities": ["PHONE_NUMBER", "EMAIL_ADDRESS"]}},
    "whole numbers for fractions": {"dedup": {"threshold": 1}, "train": {"learning_rate": 1, "epochs": 2}},
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_every_step_has_one_identity_however_the_configuration_comes(
    way: Callable[[PipelineConfig], PipelineConfig], changes: dict[str, Any], tmp_path: Path
) -> None:
    config = load(small_config(tmp_path, **changes))
    assert identities(way(config)) == identities(config)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_quickstart_has_one_identity_however_it_comes(way: Callable[[PipelineConfig], PipelineConfig]) -> None:
    assert identities(way(quickstart())) == identities(quickstart())


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(sections(PipelineConfig))
def test_a_whole_configuration_says_the_same_after_a_dump(data: dict[str, Any]) -> None:
    data["sources"] = [{"kind": "crawl", "start_urls": ["https://example.org/"]}]
    first = valid(PipelineConfig, data)
    again = through_json(first)
    assert again == first
    assert identities(again) == identities(first)


def test_a_model_is_called_by_the_name_of_its_configuration_unless_it_has_another() -> None:
    base = {"name": "small", "sources": [{"kind": "crawl", "start_urls": ["https://example.org/"]}]}
    assert through_json(check(dict(base))).publish_params().name == "small"
    assert through_json(check(base | {"publish": {"name": "large"}})).publish_params().name == "large"


def test_a_users_benchmark_reaches_its_stage(tmp_path: Path) -> None:
    (tmp_path / "exam.jsonl").write_text("{}\n")
    chain = build(load(small_config(tmp_path, decontaminate={"benchmarks": ["exam.jsonl"]})))
    assert chain.steps["benchmarks"].outside == {"paths": {"exam": str(tmp_path / "exam.jsonl")}}


# what is wrong is one line


def refused(text: str, tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line
    return line.removeprefix(f"{path}: ")


SOURCE = "sources: [{kind: text, name: a, path: x}]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nname: b\n" + SOURCE, "name: given twice, in line 1 and in line 2; keep one"),
        (
            f"name: a\n{SOURCE}train:\n  layers: 2\nlanguage: {{}}\ntrain:\n  width: 64\n",
            "train: given twice, in line 3 and in line 6; keep one",
        ),
        (f"name: a\n{SOURCE}train: {{layers: 2, width: 64, layers: 2}}\n", "train.layers: given twice, in line 3"),
        (
            "name: a\nsources:\n- kind: text\n  name: a\n  path: x\n  name: b\n",
            "sources.0.name: given twice, in line 4",
        ),
        ('name: a\n"name": b\n' + SOURCE, "name: given twice"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_lines(text: str, said: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(said)


def test_an_anchor_used_twice_is_no_key_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: a\nsources:\n- &first {kind: text, name: a, path: x}\n- {<<: *first, name: b}\n"
        "evaluate: &threads {threads: 1}\nquantise: *threads\n"
    )
    config = load(path)
    assert [source.name for source in config.sources] == ["a", "b"] and config.quantise.threads == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a mapping"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "not YAML"),
        ("name: !!python/object:os.system {}", "not YAML"),
        ("name: 2024-13-45\n" + SOURCE, "not YAML"),
        ("? [a, b]\n: c\n", "not YAML"),
        ("[" * 5000 + "]" * 5000, "not a configuration: nested too deeply"),
        ("name: a\nsources: &s [*s]\n", "sources.0"),
        (f"name: a\n{SOURCE}1: 2\n", "1: "),
        (f"name: 2024-01-01\n{SOURCE}", "name: "),
        (f"name: a\n{SOURCE}train: {{learning_rate: .inf}}\n", "train.learning_rate: "),
        (f"name: a\n{SOURCE}dedup: {{threshold: .nan}}\n", "dedup.threshold: "),
        (f"name: a\n{SOURCE}train: {{batch: 8, micro_batch: 3}}\n", "train.micro_batch: 3 does not divide"),
        (f"name: a\n{SOURCE}train: 3\n", "train: "),
        (
            f"name: a\n{SOURCE}decontaminate: {{benchmarks: [gsm8k-100, gsm8k-100]}}\n",
            "decontaminate.benchmarks: 'gsm8k-100' i",
        ),
        (f"name: a\n{SOURCE}decontaminate: {{benchmarks: [a.jsonl, ./a.jsonl]}}\n", "decontaminate.benchmarks: '"),
        (f"name: a\n{SOURCE}execution: {{workers: 0}}\n", "execution.workers: "),
        (
            "name: a\nsources: [{kind: text, name: a, path: x}, {kind: html, name: a, path: y}]\n",
            "sources: two sources",
        ),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(text: str, said: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(said)


any_yaml = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from([*PipelineConfig.model_fields, "more"]), value=any_yaml)
@example(key="sources", value=[{"kind": "text", "name": "a", "path": "~nobody/x"}])
@example(key="decontaminate", value={"benchmarks": [1, None, "~nobody/x.jsonl"]})
def test_whatever_stands_under_a_key_is_read_or_refused_in_one_line(key: str, value: Any) -> None:
    data = {"name": "a", "sources": [{"kind": "text", "name": "a", "path": "x"}]} | {key: value}
    try:
        check(data, "mine.yaml", Path("/nowhere"))
    except UsageError as error:
        assert str(error).startswith(f"mine.yaml: {key}") and "\n" not in str(error)


@pytest.mark.parametrize("path", ["nowhere", "~nobody-by-this-name/x", "zero\0byte"])
def test_a_source_that_is_not_there_is_named(path: str) -> None:
    config = check({"name": "a", "sources": [{"kind": "text", "name": "notes", "path": path}]}, folder=Path("/nowhere"))
    with pytest.raises(UsageError, match=r"^source 'notes': path: "):
        build(config)


def test_training_parameters_are_whole_without_pydantic() -> None:
    dumped = TypeAdapter(TrainParams).dump_python(TrainParams(), mode="json")
    deciding = plain_params(TrainParams())
    assert deciding.items() <= dumped.items()
    assert dumped.keys() - deciding.keys() == {"checkpoint_every", "hang_seconds"}  # these change no byte


def test_planning_loads_nothing_heavy() -> None:
    """`plan` must answer within a second: torch alone takes longer than that to import."""
    heavy = ("torch", "numba", "pyarrow", "prefect", "pandas", "boto3", "spacy", "scrapy", "tokenizers", "fasttext")
    asked = (
        "import sys, llmcore.cli, llmcore.planning.plan, llmcore.planning.forecast; "
        "from llmcore.planning.checks import must_work; "
        "from llmcore.planning.chain import build; from llmcore.planning.config import quickstart; "
        "from llmcore.artifacts.recipe import own_identity; "
        "must_work(quickstart()); "
        "[own_identity(step.stage, step.params) for step in build(quickstart()).steps.values()]; "
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
