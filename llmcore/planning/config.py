"""The configuration: one YAML file, checked before anything starts. Parameters are declared beside each stage.

The same models give the Prefect UI its form and editors a JSON Schema (`llmcore schema`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from llmcore.artifacts.params import Params
from llmcore.errors import UsageError
from llmcore.evaluation.stage import EvaluateParams
from llmcore.planning.mistakes import in_words
from llmcore.release.licences import model_licence
from llmcore.release.publish import PublishParams
from llmcore.release.quantise import QuantiseParams
from llmcore.selection.classifier import ClassifierParams
from llmcore.selection.decontaminate import DecontaminateParams
from llmcore.selection.dedup import DedupParams
from llmcore.selection.quality import QualityParams
from llmcore.selection.signals import SignalsParams
from llmcore.selection.split import SplitParams
from llmcore.sources import collect
from llmcore.sources.bad_input import BadInput
from llmcore.sources.crawl import CrawlParams
from llmcore.sources.ingest import IngestParams
from llmcore.text.clean import CleanParams
from llmcore.text.extract import ExtractParams
from llmcore.text.language import LanguageParams
from llmcore.text.pii import PiiParams
from llmcore.text.trim import SiteLinesParams
from llmcore.tokens.pack import PackParams
from llmcore.tokens.tokenise import TokeniseParams
from llmcore.tokens.tokenizer import TokenizerParams
from llmcore.training.params import TrainParams


class Execution(Params):
    """How the work is spread. Nothing here changes what comes out, so nothing here enters a key."""

    runner: Literal["local", "dask", "ray"] = Field(
        "local", description="local: worker processes of this machine; dask or ray: a cluster"
    )
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024, description="processes; by default one a core"
    )
    device: Literal["this machine", "cpu", "cuda"] = Field(
        "this machine", description="what `auto` is resolved against, once, before anything runs"
    )
    address: str | None = Field(None, description="of a running Dask scheduler or Ray head; none: a local cluster")
    retries: int = Field(5, ge=0, le=1000, description="of a step, after the store or another server was away")
    retry_seconds: float = Field(10.0, gt=0, le=3600, description="before the first retry; each next pause is twice it")
    timeout_seconds: float | None = Field(
        None, gt=0, description="for one global step (training, say); none: no limit, for a training may take weeks"
    )


class CrawlSource(CrawlParams):
    """A web site, crawled."""

    kind: Literal["crawl"] = Field("crawl", description="a web site")
    serve_path: str | None = Field(None, description="folder of the site to serve, where serve is `folder`")
    overlay: str | None = Field(None, description="folder of pages that replace or add to those of the served site")
    shard_bytes: int = Field(64 << 20, ge=1024, description="text in one shard, bytes")
    gone: Literal["keep", "drop"] = Field("keep", description="documents whose page a refresh finds gone (404, 410)")
    bad_input: BadInput = Field(BadInput(), description="share: of it that may be damaged, and is left out by name")
    strict: bool = Field(False, description="the first damaged record stops the run")

    def crawl_params(self, label: str | None) -> CrawlParams:
        fields = self.model_dump(include=set(CrawlParams.model_fields))
        return CrawlParams(**(fields | ({"snapshot": label} if label else {})))

    def outside(self) -> dict[str, Any]:
        return {name: value for name in ("serve_path", "overlay") if (value := getattr(self, name)) is not None}

    def ingest_params(self) -> IngestParams:
        return IngestParams(
            source=self.name,
            kind="warc",
            licence=self.licence,
            frame_bytes=self.shard_bytes,
            bad_input=self.bad_input,
            strict=self.strict,
        )


class FileSource(Params):
    """Files, a folder or a glob; local or on S3."""

    model_config = ConfigDict(title="files")
    kind: Literal["warc", "parquet", "jsonl", "text", "html"] = Field(description="format of the files")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40, description="of the source, in lower case")
    path: str = Field(description="file, folder, glob or s3:// URI; relative to the configuration file")
    licence: str = Field("unknown", description="SPDX identifier")
    text_column: str = Field("text", description="column or field that holds the text (parquet, jsonl)")
    url_column: str | None = Field(None, description="column or field that holds the URL (parquet, jsonl)")
    html_column: bool = Field(False, description="text_column holds HTML, from which extract takes the text")
    max_document_bytes: int = Field(16 << 20, ge=1, description="UTF-8 bytes of one document at most, or it is dropped")
    shard_bytes: int = Field(64 << 20, ge=1024, description="text in one shard, bytes")
    gone: Literal["keep", "drop"] = Field("keep", description="documents that the files no longer hold at a refresh")
    bad_input: BadInput = Field(BadInput(), description="share: of it that may be damaged, and is left out by name")
    strict: bool = Field(False, description="the first damaged record stops the run")

    @model_validator(mode="before")
    @classmethod
    def _no_bad_line(cls, data: Any) -> Any:
        if isinstance(data, dict) and "bad_line" in data:
            raise ValueError("bad_line is gone: `drop` is the default (see bad_input), `error` is strict: true")
        return data

    def ingest_params(self) -> IngestParams:
        return IngestParams(
            source=self.name,
            kind=self.kind,
            licence=self.licence,
            text_column=self.text_column,
            url_column=self.url_column,
            html_column=self.html_column,
            max_document_bytes=self.max_document_bytes,
            frame_bytes=self.shard_bytes,
            bad_input=self.bad_input,
            strict=self.strict,
        )

    def scan(self) -> tuple[collect.CollectParams, Mapping[str, Any]]:
        """What the source holds now. Raises UsageError naming it if that is nothing."""
        try:
            files, paths = collect.scan(self.kind, self.place())
        except UsageError as error:
            raise UsageError(f"source {self.name!r}: {error}") from error
        return collect.CollectParams(name=self.name, kind=self.kind, files=files), paths

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of the files that the source holds now, none of which is read. Raises as `scan` does."""
        try:
            return collect.sizes(self.kind, self.place())
        except UsageError as error:
            raise UsageError(f"source {self.name!r}: {error}") from error

    def place(self) -> str:
        """Where the files lie; what is bundled lies in the package."""
        bundled = self.path.removeprefix("package:")
        return self.path if bundled == self.path else str(resources.files("llmcore") / bundled)


class PipelineConfig(Params):
    """Everything about one model, from its sources to where it is published."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60, description="the ref it is published under")
    store: str = Field("file://~/.llmcore/store", description="file:///folder or s3://bucket/prefix")
    sources: tuple[Annotated[CrawlSource | FileSource, Field(discriminator="kind")], ...] = Field(
        min_length=1, description="a list, each with its `kind` (below)"
    )
    extract: ExtractParams = ExtractParams()
    clean: CleanParams = CleanParams()
    site_lines: SiteLinesParams = SiteLinesParams()
    language: LanguageParams = LanguageParams()
    pii: PiiParams = PiiParams()
    dedup: DedupParams = DedupParams()
    signals: SignalsParams = SignalsParams()
    classifier: ClassifierParams = ClassifierParams()
    quality: QualityParams = QualityParams()
    decontaminate: DecontaminateParams = DecontaminateParams()
    split: SplitParams = SplitParams()
    tokenizer: TokenizerParams = TokenizerParams()
    tokenise: TokeniseParams = TokeniseParams()
    pack: PackParams = PackParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    quantise: QuantiseParams = QuantiseParams()
    publish: PublishParams = PublishParams()
    execution: Execution = Execution()

    def publish_params(self) -> PublishParams:
        """With name and licence filled in. UsageError where the sources leave the licence to whoever publishes."""
        licence = model_licence(self.publish.licence, {source.name: source.licence for source in self.sources})
        return self.publish.model_copy(update={"name": self.publish.name or self.name, "licence": licence})

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [source.name for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name!r}; give each a name of its own")
        return sources


def load(path: Path | None) -> PipelineConfig:
    """Read and check a configuration; None means the embedded quickstart.

    Raises UsageError, in one line, naming the file and the key.
    """
    if path is None:
        text, folder, label = quickstart_text(), None, "quickstart"
    else:
        folder, label = path.resolve().parent, str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file; give a configuration, or none for the quickstart") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not readable: {error}") from error
    return check(_parsed(text, label), label, folder)


def _parsed(text: str, label: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_doubles(node, label)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date in the 13th month
        raise UsageError(f"{label}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise UsageError(f"{label}: not a configuration: nested too deeply") from None
    finally:
        loader.dispose()


def _refuse_doubles(top: yaml.Node, label: str) -> None:
    """YAML forbids a key that is given twice, but PyYAML takes the last and forgets the rest in silence."""
    waiting: list[tuple[str, yaml.Node]] = [("", top)]
    seen: set[int] = set()  # an anchor leads to one node from several places
    while waiting:
        place, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(f"{place}{number}.", item) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines:
                    raise UsageError(
                        f"{label}: {place}{name}: given twice, in line {lines[name]} and in line {line}; keep one"
                    )
                lines[name] = line
                waiting.append((f"{place}{name}.", value))


def quickstart_text() -> str:
    """The embedded default as it stands in its file."""
    return (resources.files("llmcore") / "quickstart" / "config.yaml").read_text(encoding="utf-8")


def quickstart() -> PipelineConfig:
    """The embedded default."""
    return load(None)


def check(data: Any, label: str = "configuration", folder: Path | None = None) -> PipelineConfig:
    """Validate plain data; `folder` is what relative paths of sources are relative to.

    Raises UsageError with every mistake at once, in one line, each with its key and what was meant perhaps.
    """
    if not isinstance(data, dict):
        raise UsageError(f"{label}: must be a mapping of keys such as name, sources, train; see the quickstart's")
    for source in data.get("sources") or () if isinstance(data.get("sources"), list) else ():
        if isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = _absolute(source["path"], folder)
    overlap = data.get("decontaminate")
    if isinstance(overlap, dict) and isinstance(overlap.get("benchmarks"), list):
        named = overlap["benchmarks"]
        overlap["benchmarks"] = [
            _absolute(name, folder) if str(name).endswith((".jsonl", ".json")) else name for name in named
        ]
    wrong: list[str] = []
    while True:
        try:
            config = PipelineConfig.model_validate(data)
        except ValidationError as error:
            wrong += in_words(error, data, PipelineConfig)
        except UsageError as error:  # of a plain dataclass, which ends all checks: look at the rest without it
            wrong.append(str(error))
            section = str(error).partition(".")[0]
            if section in data:
                data = {key: value for key, value in data.items() if key != section}
                continue
        else:
            if not wrong:
                return config
        raise UsageError(f"{label}: {' | '.join(dict.fromkeys(wrong))}")


def _absolute(path: str, folder: Path | None) -> str:
    if re.match(r"^([a-z0-9]+://|package:)", path):
        return path
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # ~nobody: said when the source is looked at
        return path
    return str(expanded if expanded.is_absolute() or folder is None else folder / expanded)
