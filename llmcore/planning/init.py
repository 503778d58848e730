"""A configuration for what lies in folders: looked at, sized, measured once and written down as concrete values.

Nothing in it is measured again: what the machine did in five seconds is a comment, and what follows from it a number.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmcore.artifacts.store import open_store
from llmcore.errors import UsageError
from llmcore.planning import targets
from llmcore.planning.chain import build
from llmcore.planning.config import check, load
from llmcore.planning.cost import Speed, Text, training_cost
from llmcore.planning.devices import Machine, Reach, gpu_named, gpu_reach, processor_reach, this_machine
from llmcore.planning.forecast import forecast, in_words
from llmcore.planning.look import Found, Left, look
from llmcore.planning.plan import PlannedStep
from llmcore.planning.sizing import LADDER, Size, choose
from llmcore.training.params import TrainParams
from llmcore.training.speed import Measured, measure

MEASURED_SECONDS = 5.0
LEAST_LANGUAGE = 0.05  # of the text: below, a language is noise of the identification, or not worth its share
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")  # YAML has no place for them
BUSY = 0.8  # of the processor's time: below, something else is at work here
FASTER = 1.1  # how much bf16 must be, to be worth its rounding
GOPHER_WORDS = 100_000  # quality.gopher_max_words by default
MOST_DOCUMENT = 16 << 20  # max_document_bytes by default
BYTES_A_WORD = 5.5


@dataclass(frozen=True)
class Draft:
    """What `write` writes: sources, size, and what the machine was measured to do (None: not measured)."""

    name: str
    found: Sequence[Found]
    left: Sequence[Left]
    size: Size
    train: TrainParams
    trained: float
    reach: Reach
    measured: Measured | None
    minutes: float
    machine: Machine

    @property
    def bytes(self) -> float:
        return sum(source.text for source in self.found)

    @property
    def documents(self) -> int:
        return sum(source.documents for source in self.found)

    def text(self) -> Text:
        windows = math.ceil(self.size.tokens / self.size.window)
        return Text(self.size.tokens, windows, "a sample of each source")

    def speed(self) -> Speed:
        return Speed(self.reach, "measured in five seconds" if self.measured else "computed")


def draft(
    paths: Sequence[str],
    name: str = "",
    minutes: float = 10.0,
    seconds: float = MEASURED_SECONDS,
    tell: Callable[[str], None] = lambda said: None,
) -> Draft:
    """Look, size, measure, size again. seconds: for the measurement, 0: compute what the machine may reach instead.

    Raises UsageError where nothing can be read at these paths.
    """
    found, left = look(paths)
    text = sum(source.text for source in found)
    tell(f"{sum(s.files for s in found):,} files, about {text / 1e6:,.1f} MB of text after all filters")
    target, machine = targets.this_machine(), this_machine()
    held_out = _held_out(sum(source.documents for source in found))
    longest = max(found, key=lambda source: source.text).p75
    trained = 1 - 2 * held_out

    def sized(reach: Reach) -> tuple[Size, TrainParams]:
        size = choose(text, trained, longest, (reach.low + reach.high) / 2, minutes, target.device)
        return size, _params(size, target.device, target.precision, machine)

    reach = _computed(machine, target)
    size, train = sized(reach)
    measured = None
    if seconds > 0:
        tell(f"measuring {seconds:.0f} s of training with {size.model.parameters / 1e6:.1f}M parameters")
        precision, measured = _faster(size, train, seconds)
        target = targets.Target(target.device, precision)
        flops = measured.when_idle * size.model.flops_per_token(size.window)
        reach = Reach(flops, flops)
        size, train = sized(reach)
    return Draft(
        _model_name(name or Path(paths[0]).resolve().name.split(".")[0]),
        *(found, left, size, train, trained, reach, measured, minutes, machine),
    )


def _computed(machine: Machine, target: targets.Target) -> Reach:
    middle = LADDER[3]
    named = [known for gpu in machine.gpus if (known := gpu_named(gpu)) is not None]
    if target.device == "cuda" and named:
        flops = middle.model(4096, 256).flops_per_token(256) * 65_536
        return gpu_reach(named[0], target.precision, True, middle.layers, 1, flops)
    return processor_reach(machine, target.precision, False, machine.cores)


def _params(size: Size, device: str, precision: str, machine: Machine) -> TrainParams:
    """The section `train`."""
    return TrainParams(
        layers=size.shape.layers,
        width=size.shape.width,
        heads=size.shape.heads,
        kv_heads=size.shape.kv_heads,
        ffn_width=size.shape.ffn_width,
        epochs=size.epochs,
        batch=size.batch,
        micro_batch=size.micro_batch,
        optimizer="muon",
        learning_rate=size.learning_rate,
        warm_up=size.warm_up,
        device=device,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        compile=device == "cuda",
        threads=machine.cores,
    )


def _faster(size: Size, train: TrainParams, seconds: float) -> tuple[str, Measured]:
    """The precision that is faster here, and how fast it is."""
    if train.device == "cuda":
        return train.precision, measure(train, size.vocab_size, size.window, seconds)
    tried = {name: measure(_with(train, name), size.vocab_size, size.window, seconds / 2) for name in ("fp32", "bf16")}
    bf16 = tried["bf16"].when_idle > FASTER * tried["fp32"].when_idle
    return ("bf16" if bf16 else "fp32"), tried["bf16" if bf16 else "fp32"]


def _with(train: TrainParams, precision: str) -> TrainParams:
    return TrainParams(**{**vars(train), "precision": precision})


def _held_out(documents: int) -> float:
    """Share of the documents for validation, and for the test: 5 %, more where that would be a handful."""
    return 0.05 if documents >= 400 else 0.1 if documents >= 40 else 0.2


def _model_name(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]
    if not plain:
        raise UsageError(f"--name: {name!r} leaves no letter or digit; give the model a name")
    return plain


def written(made: Draft, folder: Path, store: str = "") -> str:
    """The configuration as YAML with its reasons, to lie in a folder; it is checked as every other."""
    text = "\n".join(_lines(made, folder.resolve(), store)) + "\n"
    config = check(yaml.safe_load(text), "init", folder)
    try:
        config.publish_params()
    except UsageError as error:  # a source's licence does not allow the model's default
        text += "\n".join(_licence(made.found, str(error))) + "\n"
        check(yaml.safe_load(text), "init", folder)
    return text


def _licence(found: Sequence[Found], refusal: str) -> Iterator[str]:
    """The licence of the source that a refusal names, for the model too."""
    named = [source for source in found if repr(source.name) in refusal and source.licence_file is not None]
    if not named or named[0].licence_file is None:
        return
    yield ""
    yield from _comment(
        "That of a source, because it does not allow the default. Whether the licence of a text binds a model trained "
        "on it is not settled: say what you think right."
    )
    yield "publish:"
    yield f"  licence: {named[0].licence}"
    yield "  licence_text: |2"
    for line in named[0].licence_file.read_text(encoding="utf-8", errors="replace").splitlines():
        yield f"    {UNPRINTABLE.sub('', line)}".rstrip()


def write(made: Draft, path: Path | None = None, force: bool = False, store: str = "") -> Path:
    """Write the configuration (by default to NAME.yaml); returns where. UsageError where a file lies there already."""
    path = path or Path(f"{made.name}.yaml")
    text = written(made, path.absolute().parent, store)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path}: exists already; give another name with --output, or say --force") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def forecast_of(made: Draft, path: Path) -> str:
    """What a run of the configuration will take: minutes and memory."""
    asked = load(path)
    store = open_store(asked.store)
    chain = build(asked)
    cost = training_cost(store, asked, chain, text=made.text(), speed=made.speed())
    planned = [PlannedStep(step, "run", "") for step in chain.steps]
    expected = forecast(store, asked, chain, planned, cost)
    training = next(expected[step.name].seconds or 0.0 for step in chain.steps.values() if step.stage.role == "model")
    rest = sum(found.seconds or 0.0 for found in expected.values()) - training
    memory = max(cost["memory_gigabytes"], made.measured.bytes / 1e9 if made.measured else 0.0)
    return (
        f"about {in_words(training + rest)}: {in_words(training)} of training ({cost['steps']:,} steps, "
        f"{cost['tokens']:,} tokens, {cost['parameters'] / 1e6:.2f}M parameters), {in_words(rest)} for the rest; "
        f"the training takes about {memory:.1f} GB of memory"
    )


def _lines(made: Draft, folder: Path, store: str) -> Iterator[str]:
    size = made.size
    yield from _comment(
        f"Written by `llmcore init` for {made.machine}. Every value is a number to change; `llmcore plan` says what a "
        "change means, `llmcore schema --markdown` what else there is."
    )
    yield f"name: {made.name}"
    if store:
        yield f"store: {store}"
    yield ""
    yield "sources:"
    for source in made.found:
        yield from _source(source, folder)
    for left in made.left:
        yield from _comment(f"Left out: {left.files:,} files ({left.what}): {left.advice}", indent=2)
    yield ""
    yield from _languages(made.found)
    yield from _long_documents(made.found)
    yield from _split(made)
    yield ""
    yield from _comment(
        f"About {made.bytes / 1e6:,.1f} MB of text after all filters, by a sample. A vocabulary of {size.vocab_size:,} "
        "has at least 2,000 bytes of it for each entry (the quickstart's ratio), or is the smallest that there is."
    )
    yield f"tokenizer: {{vocab_size: {size.vocab_size}}}"
    yield from _comment(
        "The next power of two that holds three of four documents, within 64 to 256 on a processor (where 256 was "
        "better than 512 for equal arithmetic) and 128 to 2,048 on a GPU, and that leaves 64 windows."
    )
    yield f"pack: {{window: {size.window}}}"
    yield ""
    yield from _comment(_reason(made))
    yield "train:"
    for name in ("layers", "width", "heads", "kv_heads", "ffn_width"):
        yield f"  {name}: {getattr(size.shape, name)}"
    yield f"  epochs: {_number(size.epochs)} # {_epochs(made)}"
    yield f"  batch: {size.batch} # about {size.steps:,} steps"
    yield f"  micro_batch: {size.micro_batch}"
    yield "  optimizer: muon # 1.73 against AdamW's 1.98 bits per byte for equal arithmetic on the bundled corpus"
    yield f"  learning_rate: {size.learning_rate} # the quickstart's, falling with the root of the width"
    yield f"  warm_up: {size.warm_up} # a tenth of the steps, at most 50"
    yield f"  device: {made.train.device}"
    yield f"  precision: {made.train.precision} # {_precision(made)}"
    yield f"  compile: {str(made.train.compile).lower()}"
    yield f"  threads: {made.train.threads} # this machine's cores; part of the recipe, as they fix the order of sums"
    yield f"evaluate: {{device: {made.train.device}, threads: {made.train.threads}}}"
    yield f"quantise: {{device: {made.train.device}, threads: {made.train.threads}}}"


def _comment(text: str, indent: int = 0) -> list[str]:
    start = f"{' ' * indent}# "
    return textwrap.wrap(text, 118, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _source(source: Found, folder: Path) -> Iterator[str]:
    yield f"  - kind: {source.kind} # {source.files:,} files, {source.bytes / 1e6:,.2f} MB"
    yield f"    name: {source.name}"
    place = Path(source.path)
    yield f"    path: {_text(str(place.relative_to(folder)) if place.is_relative_to(folder) else source.path)}"
    if source.licence_file and source.licence != "unknown":
        yield f"    licence: {source.licence} # by {source.licence_file.name}, which lies there: is it the text's too?"
    elif source.licence_file:
        yield f"    licence: unknown # {source.licence_file.name} lies there, but init does not know it: say what it is"
    else:
        yield "    licence: unknown # no LICENSE or COPYING lies there: say what it is, as an SPDX identifier"
    for name, value in source.columns.items():
        yield f"    {name}: {_text(value)}"
    if source.kind in ("text", "html") and source.longest > MOST_DOCUMENT:
        yield f"    max_document_bytes: {source.longest} # the largest file; more than 16 MiB is dropped by default"


def _languages(found: Sequence[Found]) -> Iterator[str]:
    total = sum(source.text for source in found) or 1.0
    shares: dict[str, float] = {}
    for source in found:
        for code, share in source.languages.items():
            shares[code] = shares.get(code, 0.0) + share * source.text / total
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    kept = [code for code, share in ordered if share >= LEAST_LANGUAGE]
    said = ", ".join(f"{code} {share:.0%}" for code, share in ordered[:6] if share >= 0.005)
    yield from _comment(f"Of a sample's text: {said}. Others are dropped; [] keeps all." if said else "None was told.")
    yield f"language: {{languages: [{', '.join(map(_text, kept))}]}}"


def _long_documents(found: Sequence[Found]) -> Iterator[str]:
    words = max((source.longest / BYTES_A_WORD for source in found if source.kind == "text"), default=0)
    if words > 0.8 * GOPHER_WORDS:
        yield from _comment(
            f"The longest file has about {words:,.0f} words; Gopher's rule drops documents of more than 100,000."
        )
        yield f"quality: {{gopher_max_words: {10 ** math.ceil(math.log10(words * 2))}}}"


def _split(made: Draft) -> Iterator[str]:
    share = _held_out(made.documents)
    if share == 0.05:
        return
    few = ""
    if made.documents < 20:
        few = " With so few, a split may stay empty and no evaluation is possible then: cut them, into chapters say."
    yield from _comment(f"About {made.documents:,} documents: 5 % of them would be a handful.{few}")
    yield f"split: {{validation: {share}, test: {share}}}"


def _reason(made: Draft) -> str:
    size = made.size
    return (
        f"{size.model.parameters / 1e6:.2f}M parameters: of a ladder of shapes the one with the least expected loss "
        "by Muennighoff et al. 2023 (repeated text; Chinchilla's law where text is plenty), for "
        f"{size.tokens:,} tokens to train on and {made.minutes:g} minutes here, in which this one reads "
        f"{size.budget:,}."
    )


def _epochs(made: Draft) -> str:
    size = made.size
    if size.epochs < 1:
        return f"a part of the text: more of it takes longer than {made.minutes:g} minutes"
    if size.budget < size.tokens * (size.epochs + 1):
        return f"what {made.minutes:g} minutes allow"
    return "read again as long as it helps (ibid.: up to 4 as good as new, from 16 on worth nothing)"


def _precision(made: Draft) -> str:
    if made.measured is None:
        return "by what the device can do; not measured"
    busy = ""
    if made.measured.share < BUSY:
        busy = f" with {made.measured.share:.0%} of the processor; counted as {made.measured.when_idle:,.0f}"
    return f"the faster one here: {made.measured.tokens_per_second:,.0f} tokens/s, measured in five seconds{busy}"


def _number(value: float) -> str:
    """As YAML reads a fraction: with a point, and without an exponent."""
    return f"{value:.12f}".rstrip("0") + ("0" if value == int(value) else "")


def _text(value: Any) -> str:
    """A YAML scalar: plain where it means itself, quoted otherwise (`no` is Norwegian, and false)."""
    if isinstance(value, bool):
        return str(value).lower()
    plain = re.fullmatch(r"[A-Za-z/~.][\w/~.-]*", value) and value.lower() not in ("no", "yes", "on", "off", "y", "n")
    return value if plain and value.lower() not in ("true", "false", "null", "~") else json.dumps(value)
