"""Smaller files of the model for llama.cpp, and what each format costs in quality.

Formats: f16, q8_0 and q4_0 by the gguf package; K-quants (q4_k_m, …) by llama.cpp where the extra is installed. The
loss is measured as llama.cpp's `perplexity --kl-divergence` does: against the full model, on held-out text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from llmcore.artifacts.disk import ask_for_room
from llmcore.artifacts.export import gather
from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.artifacts.working import working_folder
from llmcore.selection.versions import left

Format = Literal["f16", "q8_0", "q4_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"]
MEASURED_TOGETHER = 1 << 30  # bytes of weights in memory at once, the full model's and those read back
MODEL_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class QuantiseParams(Params):
    formats: tuple[Format, ...] = Field(
        ("f16", "q8_0", "q4_0"), description="GGUF files to write; K-quants need the extra `kquants`"
    )
    tokens: int = Field(40_000, ge=1_000, description="held-out tokens on which the loss of each format is measured")
    threads: int = Field(2, ge=1, description="on a processor; their number fixes the order of sums")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="that measures; auto: what execution.device says; the key holds cpu or cuda"
    )

    @field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        return tuple(dict.fromkeys(formats))


def quantise(inputs: Mapping[str, Files], params: QuantiseParams, run: Run) -> dict[str, Any]:
    """Write gguf/model-FORMAT.gguf for each format, and quantisation.json with sizes and losses.

    Roles: model (config.json, model.safetensors), tokenizer (tokenizer.json …), tokens (validation/*.parquet), and
    versions (dropped/, the documents that no longer stand; none without it).
    Raises UsageError when a K-quant is asked for without the extra, LlmcoreError when there is no held-out text.
    """
    from llmcore.release import fidelity, gguf_file, k_quants

    k_quants.check_available(params.formats)
    with working_folder() as temporary:
        model, tokenizer = temporary / "model", temporary / "tokenizer"
        gather(inputs["model"], MODEL_FILES, model)
        gather(inputs["tokenizer"], TOKENIZER_FILES, tokenizer)
        window = int(json.loads((model / "config.json").read_text())["max_position_embeddings"])
        gone = left(inputs.get("versions"))
        split = fidelity.held_out_split(inputs["tokens"], gone)
        sample = fidelity.sample(inputs["tokens"], params.tokens, window, split, gone)
        folder = run.out / "gguf"
        folder.mkdir()
        f16 = folder / "model-f16.gguf" if "f16" in params.formats else temporary / "f16.gguf"
        if not set(params.formats).isdisjoint({"f16", *k_quants.FORMATS}):
            gguf_file.write(model, tokenizer, f16, "f16")

        weights = (model / "model.safetensors").stat().st_size
        entries: list[dict[str, Any]] = []
        losses = fidelity.NOTHING
        for names in _groups(params.formats, weights):
            ask_for_room(folder, 2 * weights * len(names), f"{folder} (TMPDIR)")
            restored = {name: temporary / name for name in names}
            for name, place in restored.items():
                run.progress(len(entries), len(params.formats), f"writing {name}")
                path = folder / f"model-{name}.gguf"
                entries.append(
                    {"format": name, "file": f"gguf/{path.name}"} | _write(model, tokenizer, f16, path, place)
                )
            losses |= fidelity.measure(
                model,
                restored,
                sample,
                tokenizer / "tokenizer.json",
                params.threads,
                params.device,
                partial(_measuring, run, len(entries) - len(names), len(names), len(params.formats)),
            )
            for place in restored.values():
                shutil.rmtree(place)
    report = {
        "measured_on": {"split": split, "tokens": losses.tokens, "bytes": losses.bytes, "pieces": len(sample)},
        "full": {"file": "model.safetensors", "bytes": weights, "bits_per_byte": losses.bits_per_byte},
        "formats": [entry | losses.formats[entry["format"]] for entry in entries],
    }
    (run.out / "quantisation.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return _metrics(report)


def _measuring(run: Run, first: int, count: int, formats: int, done: int, total: int) -> None:
    run.progress(first + count * done / total, formats, "measuring")


def _groups(formats: Sequence[str], weights: int) -> Iterator[Sequence[str]]:
    """Formats that are measured side by side: as many as fit MEASURED_TOGETHER, so that the full model, which each is
    compared with, runs but once where it is small."""
    size = max(1, MEASURED_TOGETHER // max(1, weights) - 1)
    for first in range(0, len(formats), size):
        yield formats[first : first + size]


def _write(model: Path, tokenizer: Path, f16: Path, path: Path, restored: Path) -> dict[str, Any]:
    """Write `path` (model-FORMAT.gguf) and read it back into the folder `restored`: size, types, and what stayed."""
    from llmcore.release import gguf_file, k_quants

    name = path.stem.removeprefix("model-")
    fallback: tuple[str, ...] = ()
    if name in k_quants.FORMATS:
        k_quants.quantise(f16, path, name)
    elif path != f16:
        fallback = gguf_file.write(model, tokenizer, path, name).fallback
    written = gguf_file.to_huggingface(path, model / "config.json", restored)
    size = path.stat().st_size
    return {
        "bytes": size,
        "bits_per_weight": round(8 * size / written.weights, 3),
        "types": dict(written.tensors),
        "kept_at_16_bits": list(fallback),
    }


def _metrics(report: Mapping[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"held_out_tokens": report["measured_on"]["tokens"]}
    for entry in report["formats"]:
        for field in ("bytes", "bits_per_byte_difference", "mean_kl", "top1_agreement"):
            metrics[f"{entry['format']}_{field}"] = entry[field]
        if entry["kept_at_16_bits"]:
            metrics[f"{entry['format']}_warning"] = (
                f"{len(entry['kept_at_16_bits'])} tensors stay at 16 bits: their rows do not divide by 32"
            )
    return metrics


STAGE = Stage(
    "quantise", version=2, role="quantised", params=QuantiseParams, function="llmcore.release.quantise:quantise"
)
