"""Memory, arithmetic, time and money of a configuration's training, before anything is spent.

How many tokens it reads is known where a dataset was packed, follows from the tokens where only windows changed, and is
estimated from the sources otherwise; how fast it is follows from this machine's last training, and is computed
otherwise (`devices.py`).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcore.artifacts import roots
from llmcore.artifacts.index import last_of
from llmcore.artifacts.lineage import ref_of
from llmcore.artifacts.manifest import ArtifactRef, Manifest, manifest_of, read_manifest
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store
from llmcore.errors import UsageError
from llmcore.model.config import ModelConfig
from llmcore.planning import targets
from llmcore.planning.chain import Chain
from llmcore.planning.config import FileSource, PipelineConfig
from llmcore.planning.devices import GPUS, Reach, gpu_named, gpu_reach, processor_reach, this_machine
from llmcore.planning.extent import bytes_per_token, extent_of_all
from llmcore.planning.heads import dataset_ref
from llmcore.training.params import TrainParams

# weights, gradients and AdamW's two moments in fp32; Muon has one moment for most of them, and its work space
BYTES_PER_PARAMETER = 16
TORCH_BYTES = 400e6  # what the process holds before it begins, on a processor


def model_config(params: TrainParams, vocab_size: int, window: int) -> ModelConfig:
    """The model that a training with these parameters makes."""
    return ModelConfig(
        vocab_size=vocab_size,
        width=params.width,
        layers=params.layers,
        heads=params.heads,
        kv_heads=params.kv_heads,
        ffn_width=params.ffn_width,
        window=window,
        rope_theta=params.rope_theta,
        tied=params.tied,
    )


def training_memory(model: ModelConfig, params: TrainParams) -> float:
    """Bytes that a training process holds: state, and what one micro-batch leaves for its backward pass.

    Counted in the numbers that autograd keeps for a token: 20 widths and 4 inner widths a block, and logits in fp32
    three times (they, their log-softmax, its gradient); and the mask of a window.
    """
    tokens = params.micro_batch * model.window
    width = 2 if params.precision == "bf16" else 4
    kept = tokens * model.layers * (20 * model.width + 4 * model.ffn_width) * width
    logits = 3 * 4 * tokens * model.vocab_size
    mask = params.micro_batch * model.window**2
    return BYTES_PER_PARAMETER * model.parameters + kept + logits + mask + TORCH_BYTES


@dataclass(frozen=True)
class Text:
    """What one epoch of a training reads, as far as it is known. how: from where it is known."""

    tokens: int | None
    windows: int | None
    how: str


def text_of(store: Store, config: PipelineConfig, chain: Chain, done: Mapping[str, ArtifactRef]) -> Text:
    """Tokens and windows of the train split. done: the chain's steps whose artifacts are there."""
    step = {step.stage.role: step.name for step in chain.steps.values()}
    window = config.pack.window
    if step["plan"] in done:
        metrics = manifest_of(store, done[step["plan"]]).metrics
        return Text(metrics["train_tokens"], metrics["train_windows"], "as packed")
    tokenised = done.get(step["tokens"])
    if tokenised is not None:
        tokens = _train_tokens(store, config, tokenised)
        return Text(tokens, _windows(tokens, window), "the tokens that there are, in new windows")
    packed = _last_packed(store, config)
    if packed is None:
        return estimated_text(config)
    grown, learnt = _growth(store, config, packed), _vocabulary(store, packed)
    scale = grown * bytes_per_token(learnt) / bytes_per_token(config.tokenizer.vocab_size)
    tokens = round(packed.metrics["train_tokens"] * scale)
    how = "estimated from the dataset as it was packed last"
    how += f", {grown:.2f} times the bytes" if abs(grown - 1) > 0.005 else ""
    return Text(tokens, _windows(tokens, window), how)


def _train_tokens(store: Store, config: PipelineConfig, tokenised: ArtifactRef) -> int:
    """Of the train split: as they were packed before, else their likely share of all."""
    for packed in (_last_packed(store, config), last_of(store, "pack", "pack")):
        if packed is not None and packed.inputs["tokens"][0]["key"] == tokenised.key:
            return int(packed.metrics["train_tokens"])
    share = 1 - config.split.validation - config.split.test
    return round(manifest_of(store, tokenised).metrics["tokens"] * share)


def estimated_text(config: PipelineConfig) -> Text:
    """Tokens and windows from the sources' bytes alone."""
    held, a_token = extent_of_all(config), bytes_per_token(config.tokenizer.vocab_size)
    share = 1 - config.split.validation - config.split.test
    tokens = held.likely * share / a_token
    if held.unknown:
        unknown = ", ".join(held.unknown)
        if not held.files:
            return Text(None, None, f"unknown until {unknown} was crawled")
    how = (
        f"estimated: {held.bytes / 1e6:,.2f} MB in {held.files:,} files leave about {held.likely / 1e6:,.2f} MB of "
        f"text after all filters, {share:.0%} of it to train on, {a_token:.1f} bytes a token"
    )
    if held.unknown:
        how += f"; {unknown} is not counted, and known once it was crawled"
    return Text(round(tokens), _windows(tokens, config.pack.window), how)


def _windows(tokens: float, window: int) -> int:
    """Packing fills windows to 99 % and more (`tokens/pack.py`)."""
    return max(1, math.ceil(tokens / window))


def _last_packed(store: Store, config: PipelineConfig) -> Manifest | None:
    head = roots.ref(store, dataset_ref(config.name))
    return read_manifest(store, head.record["stage"], head.record["key"]) if head else None


def _vocabulary(store: Store, made: Manifest) -> int:
    """Size of the vocabulary behind an artifact of packing or training."""
    role = "tokenizer" if "tokenizer" in made.inputs else "tokens"
    found = manifest_of(store, ref_of(store, made.inputs[role][0]))
    return int(found.metrics["vocab_size"]) if "vocab_size" in found.metrics else _vocabulary(store, found)


def _growth(store: Store, config: PipelineConfig, packed: Manifest) -> float:
    """Bytes of the files that the sources hold now, as a share of those that the dataset's head was made from."""
    head = roots.ref(store, dataset_ref(config.name))
    edges = head.record["fetched"] if head else {}
    before = now = 0
    for source in config.sources:
        edge = edges.get(f"collect {source.name}")
        if isinstance(source, FileSource) and edge is not None:
            before += collected_bytes(store, manifest_of(store, ref_of(store, edge)))
        now += sum(source.sizes().values()) if isinstance(source, FileSource) else 0
    return now / before if before and now else 1.0


def collected_bytes(store: Store, collection: Manifest) -> int:
    """Bytes of the files that a collection stands for."""
    sizes: dict[str, int] = {}
    for _, table in StoreFiles(store, collection.outputs).tables("collected/"):
        for name, outcome, size in table.select("name", "outcome", "bytes").iter_rows():
            if outcome == "gone":
                sizes.pop(name, None)
            elif size is not None:
                sizes[name] = size
    return sum(sizes.values())


@dataclass(frozen=True)
class Speed:
    """FLOP/s of a training on this machine. how: from where it is known."""

    reach: Reach
    how: str


def speed_here(store: Store, config: PipelineConfig) -> Speed:
    """From the last training on this machine in this store, else computed. config: with nothing left `auto`."""
    train = config.train
    now = _computed(config, train)
    past = last_of(store, "train", "train")
    if past is None or past.run.get("host") != socket.gethostname() or not past.run.get("seconds"):
        return Speed(now, "computed")
    try:
        before = TrainParams(**{name: value for name, value in past.identity["params"].items() if hasattr(train, name)})
    except UsageError:  # a value that an earlier version took
        return Speed(now, "computed")
    packed = manifest_of(store, ref_of(store, past.inputs["plan"][0]))
    window = int(packed.identity["params"]["window"])
    flops = model_config(before, _vocabulary(store, past), window).flops_per_token(window)
    reached = past.metrics["tokens"] * flops / past.run["seconds"]
    then = _computed(config, before)
    scale = (now.low + now.high) / (then.low + then.high)
    return Speed(Reach(reached * scale, reached * scale), "as in the last training here")


def _computed(config: PipelineConfig, train: TrainParams) -> Reach:
    machine, precision = this_machine(), "bf16" if train.precision == "bf16" else "fp32"
    known = [name for gpu in machine.gpus if (name := gpu_named(gpu)) is not None]
    if train.device != "cuda" or not known:
        return processor_reach(machine, precision, train.compile, train.threads)
    model = model_config(train, config.tokenizer.vocab_size, config.pack.window)
    reach = _gpu(known[0], train, model.flops_per_token(model.window) * model.window)
    return Reach(reach.low * train.processes, reach.high * train.processes)


def _gpu(name: str, train: TrainParams, flops_per_window: float) -> Reach:
    """What one GPU reaches in a training, its share of the batch being that of one process."""
    batch = train.batch / train.processes
    precision = "bf16" if train.precision == "bf16" else "fp32"
    passes = max(1, round(batch / train.micro_batch))
    return gpu_reach(name, precision, train.compile, train.layers, passes, flops_per_window * batch)


def training_cost(
    store: Store,
    config: PipelineConfig,
    chain: Chain,
    done: Mapping[str, ArtifactRef] | None = None,
    text: Text | None = None,
    speed: Speed | None = None,
) -> dict[str, Any]:
    """What a training takes: parameters, memory, tokens and where their number is from, FLOPs, and time by device.

    done: the chain's steps whose artifacts are there; text, speed: what somebody who measured knows better.
    `devices` is a list, this machine first; hours and dollars are [low, high]. Tokens are None where a source is still
    to be crawled and nothing else is known.
    """
    config = targets.decided(store, config)
    train, window = config.train, config.pack.window
    model = model_config(train, config.tokenizer.vocab_size, window)
    flops = model.flops_per_token(window)
    text = text or text_of(store, config, chain, done or {})
    cost: dict[str, Any] = {
        "parameters": model.parameters,
        "memory_gigabytes": round(training_memory(model, train) / 1e9, 2),
        "flops_per_token": flops,
        "precision": train.precision,
        "compile": train.compile,
        "tokens_in_text": text.tokens,
        "tokens_from": text.how,
    }
    if text.windows is None and not train.steps:
        return cost | {"steps": None, "tokens": None, "devices": []}
    steps = train.total_steps(text.windows or 1)
    read = steps * train.batch * window
    filled = min(1.0, text.tokens / (text.windows * window)) if text.tokens and text.windows else 1.0
    cost |= {
        "windows": text.windows,
        "steps": steps,
        "tokens": read,
        "epochs": round(steps * train.batch / text.windows, 2) if text.windows else None,
        "padding": round(1 - filled, 3),
        "tokens_per_parameter": round(read * filled / model.parameters, 2),
        "exaflops": round(read * flops / 1e18, 6),
    }
    return cost | {"devices": _devices(config, speed or speed_here(store, config), read, flops)}


def too_wide(config: PipelineConfig, cost: Mapping[str, Any]) -> list[str]:
    """A warning where the text, as far as the cost knows it, does not fill the windows of one step."""
    windows, batch, window = cost.get("windows"), config.train.batch, config.pack.window
    if not windows or windows >= batch:
        return []
    return [
        f"pack.window: the whole text, {cost['tokens_in_text']:,} tokens, fills {windows:,} windows of {window:,}, and "
        f"a step reads {batch}; lower window or train.batch"
    ]


def _devices(config: PipelineConfig, here: Speed, tokens: int, flops: int) -> list[dict[str, Any]]:
    rows = [{"device": f"this machine ({this_machine()})"} | _time(here.reach, tokens, flops) | {"from": here.how}]
    there = _on_a_gpu(config)
    for name, gpu in GPUS.items():
        reach = _gpu(name, there, flops * config.pack.window)
        said = f"computed, {there.precision}{', compiled' if there.compile else ''}"
        row = {"device": name} | _time(reach, tokens, flops) | {"from": said}
        row["dollars"] = [round(hours * gpu.dollars, 2) for hours in row["hours"]]
        rows.append(row)
    return rows


def _on_a_gpu(config: PipelineConfig) -> TrainParams:
    """The training as it would be resolved for a GPU, as far as the configuration leaves that open."""
    return targets.resolved(config, targets.machine_with("cuda")).train


def _time(reach: Reach, tokens: int, flops: int) -> dict[str, Any]:
    speeds = (reach.low / flops, reach.high / flops)
    return {
        "tokens_per_second": [_digits(speed) for speed in speeds],
        "hours": [round(tokens / speed / 3600, 4) for speed in reversed(speeds)],
    }


def _digits(value: float) -> int:
    """To two digits: it is no more certain than that."""
    return int(round(value, 1 - math.floor(math.log10(value)))) if value >= 10 else int(value)
