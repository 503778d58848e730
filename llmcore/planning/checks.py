"""What cannot work is found before anything runs: every command and flow asks here, and gets the same answer.

Only what can be known without reading a source is asked; it takes a listing of the sources and no more.
"""

from __future__ import annotations

import locale
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from llmcore.artifacts.backends import FileBackend
from llmcore.artifacts.store import open_store
from llmcore.errors import UsageError
from llmcore.planning import targets
from llmcore.planning.config import CrawlSource, PipelineConfig
from llmcore.planning.extent import Extent, bytes_per_token, extent_of
from llmcore.release import k_quants
from llmcore.text import language

RUNNERS = {"dask": ("prefect_dask", "pip install prefect-dask"), "ray": ("prefect_ray", "pip install 'llmcore[ray]'")}
# A vocabulary of which an entry stands on fewer bytes is learned from pairs that stand in the text a few times: GPT-2's
# 50,257 entries were learned from 40 GB, the quickstart's 4,096 from 9 MB, 2,200 bytes an entry (docs/log.md)
BYTES_AN_ENTRY = 100
LEAST_BYTES = 1000  # less is no corpus, which ingest says better than a window that is too wide


@dataclass
class Findings:
    """wrong: why the configuration cannot work, a sentence each; warnings: what it will do that nobody wants."""

    wrong: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def must_work(config: PipelineConfig, here: bool = False, sources: bool = True) -> list[str]:
    """Raise UsageError, in one line with every reason, where a configuration cannot work; returns warnings.

    here:    it is about to run on this machine; else a target that this machine is not is worth a warning only.
    sources: they will be read; a training on a dataset that is there needs them no longer.
    """
    found = examine(config, here, sources)
    if found.wrong:
        raise UsageError(" | ".join(found.wrong))
    return found.warnings


def examine(config: PipelineConfig, here: bool = False, sources: bool = True) -> Findings:
    """All that is wrong with a configuration on this machine, and what it should be warned of; see `must_work`."""
    found = Findings()
    for check in (_languages, _runner, _compiler):
        found.wrong += check(config)
    (found.wrong if here and config.execution.runner == "local" else found.warnings).extend(_gpu(config))
    for ask in (
        lambda: targets.resolved(config),
        lambda: k_quants.check_available(config.quantise.formats),
        lambda: config.decontaminate.paths(),
        lambda: config.publish_params(),
    ):
        found.wrong += _refusal(ask)
    _store(config, found)
    if sources:
        held = _sources(config, found)
        if not found.wrong:
            _sizes(config, held, found)
    return found


def _sources(config: PipelineConfig, found: Findings) -> Extent:
    held = Extent()
    for source in config.sources:
        try:
            held += extent_of(source)
        except UsageError as error:
            found.wrong.append(str(error))
        if isinstance(source, CrawlSource):
            found.wrong += _crawl_folders(source)
    return held


def _refusal(ask: Callable[[], object]) -> list[str]:
    try:
        ask()
    except UsageError as error:
        return [str(error)]
    return []


@lru_cache(maxsize=1)
def known_languages() -> frozenset[str]:
    """The codes that lid.176 gives, read from the model's dictionary: loading it takes longer than `plan` may."""
    found = re.findall(rb"__label__([a-z]+)\0", language.MODEL.read_bytes())
    return frozenset(code.decode() for code in found)


def _languages(config: PipelineConfig) -> Iterator[str]:
    known = known_languages()
    for code in config.language.languages:
        if code not in known:
            meant = _code_of(code)
            hint = f"did you mean {meant}?" if meant else f"there are {', '.join(sorted(known))}"
            yield f"language.languages: {code!r} is no code of lid.176 (ISO 639-1 where there is one); {hint}"


def _code_of(name: str) -> str:
    """The code of a language that was named otherwise: `english`, `en-GB`, `EN`, `deu`; "" where it cannot be told."""
    plain = name.strip().lower()
    short = re.split(r"[-_. ]", locale.locale_alias.get(plain, plain))[0]
    for guess in (short, _ISO_639_2.get(short, ""), short[:2] if len(short) == 3 else ""):
        if guess in known_languages():
            return guess
    return ""


# the three-letter codes that do not begin with the two letters of ISO 639-1, of the languages written most
_PAIRS = (
    "deu:de ger:de spa:es por:pt zho:zh chi:zh jpn:ja pol:pl ces:cs cze:cs dut:nl swe:sv gre:el tur:tr ukr:uk ind:id "
    "heb:he ben:bn urd:ur fas:fa per:fa mya:my bur:my hye:hy slk:sk srp:sr est:et eus:eu"
)
_ISO_639_2 = dict(re.findall(r"(\w+):(\w+)", _PAIRS))


def _runner(config: PipelineConfig) -> Iterator[str]:
    module, install = RUNNERS.get(config.execution.runner, ("", ""))
    if module and find_spec(module) is None:
        yield f"execution.runner: {config.execution.runner} needs {module}, which is not installed; {install}"


def _compiler(config: PipelineConfig) -> Iterator[str]:
    named = os.environ.get("CXX", "g++")
    if config.train.compile and targets.resolved(config).train.device == "cpu" and shutil.which(named) is None:
        yield f"train.compile: on a processor it needs a C++ compiler, and {named} is absent; install it or say false"


def _gpu(config: PipelineConfig) -> Iterator[str]:
    asked = targets.resolved(config)
    wanting = [name for name in ("train", "evaluate", "quantise") if getattr(asked, name).device == "cuda"]
    if wanting and targets.this_machine().device != "cuda":
        yield f"{wanting[0]}.device: cuda: this machine has no GPU that torch can use; run where one is, or say cpu"


def _crawl_folders(source: CrawlSource) -> Iterator[str]:
    for name, place in source.outside().items():
        if name == "overlay" and not Path(place).is_dir():
            yield f"source {source.name!r}: {name}: {place} is no folder"


def _store(config: PipelineConfig, found: Findings) -> None:
    """A store that lies there read-only can still serve what is in it; one that is to be made must be possible."""
    try:
        backend = open_store(config.store).backend
    except UsageError as error:
        found.wrong.append(str(error))
        return
    if not isinstance(backend, FileBackend):
        return
    there = next(folder for folder in (backend.root, *backend.root.parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    if there == backend.root:
        found.warnings.append(f"store: {there} cannot be written to; only what is in it already can be had")
    else:
        found.wrong.append(f"store: {backend.root} cannot be made, because {there} cannot be written to; name another")


def _sizes(config: PipelineConfig, held: Extent, found: Findings) -> None:
    """Windows and vocabularies that the text cannot fill. What a crawl brings nobody knows before."""
    if held.unknown or held.most < LEAST_BYTES:
        return
    window, vocab_size = config.pack.window, config.tokenizer.vocab_size
    tokens = held.likely / bytes_per_token(vocab_size)
    if window > held.most:  # a token stands for a byte at least
        found.wrong.append(
            f"pack.window: {window:,} tokens are more than the sources hold ({held.most:,.0f} bytes of text at most); "
            "lower it"
        )
    elif window * config.train.batch > tokens:
        found.warnings.append(
            f"pack.window: a step of {config.train.batch} windows of {window:,} tokens is more than the whole text, "
            f"about {tokens:,.0f} tokens; lower window or train.batch"
        )
    if vocab_size > held.most:
        found.wrong.append(
            f"tokenizer.vocab_size: {vocab_size:,} entries cannot be learned from {held.most:,.0f} bytes of text; "
            "lower it"
        )
    elif vocab_size * BYTES_AN_ENTRY > held.likely:
        found.warnings.append(
            f"tokenizer.vocab_size: {vocab_size:,} entries for about {held.likely / 1e6:,.2f} MB of text; most of them "
            "will be seen a few times only"
        )
