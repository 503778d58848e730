"""GGUF, the file that llama.cpp loads: written from, and read back to, the Hugging Face Llama form.

Layout after llama.cpp's `convert_hf_to_gguf.py` and the GGUF specification (version 3): architecture "llama", query and
key rows permuted from half-split to interleaved rotary order, norms in F32, a tied output matrix left out. The
tokenizer is byte-level BPE with GPT-2's regex, which llama.cpp calls model "gpt2", pre-tokenizer "gpt-2". The bytes
depend on the inputs alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from safetensors import safe_open
from tokenizers import Tokenizer

from llmcore.artifacts.disk import check_written
from llmcore.errors import LlmcoreError
from llmcore.model.tensors import save_tensors

BLOCK = 32  # weights that share one scale in Q8_0 and Q4_0: a row must divide by it
TYPES = {
    "f16": (LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16),
    "q8_0": (LlamaFileType.MOSTLY_Q8_0, GGMLQuantizationType.Q8_0),
    "q4_0": (LlamaFileType.MOSTLY_Q4_0, GGMLQuantizationType.Q4_0),
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Written:
    """What a GGUF file holds.

    tensors: how many tensors of each type.
    weights: how many numbers in all.
    fallback: tensors that kept 16 bits because their rows do not divide by 32.
    """

    tensors: Mapping[str, int]
    weights: int
    fallback: tuple[str, ...] = ()


def write(model: Path, tokenizer: Path, target: Path, quantisation: str = "f16", name: str = "model") -> Written:
    """Write `target` from a model folder (config.json, model.safetensors) and a tokenizer folder (tokenizer.json).

    quantisation: "f16", "q8_0" or "q4_0". A tensor whose rows do not divide by 32 stays F16 and is named in the result;
    the embedding, which is the output matrix too when tied, is kept at 8 bits in a 4-bit file (llama.cpp: 6 or 8).
    Raises LlmcoreError when the model is not a Llama or has more tokens than rows.
    """
    config = json.loads((model / "config.json").read_text())
    if config.get("model_type") != "llama":
        raise LlmcoreError(
            f"{model / 'config.json'}: model_type is {config.get('model_type')!r}; GGUF is written for 'llama'"
        )
    file_type, quantised_type = TYPES[quantisation]
    writer = gguf.GGUFWriter(None, "llama")
    writer.path = target
    _describe_model(writer, config, name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _describe_tokenizer(writer, tokenizer, int(config["vocab_size"]))

    weights = _Weights(model)
    tied = bool(config.get("tie_word_embeddings"))
    places = [(ours, theirs) for ours, theirs in _names(config) if not (tied and theirs == "lm_head.weight")]
    missing = [theirs for _, theirs in places if theirs not in weights.shapes]
    if missing:
        raise LlmcoreError(f"{model}: tensor {missing[0]!r} is missing from the weights; export the model again")
    types = {ours: _type_of(ours, weights.shapes[theirs], quantised_type) for ours, theirs in places}
    for ours, theirs in places:
        shape = weights.shapes[theirs]
        size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, types[ours])))
        writer.add_tensor_info(ours, shape, np.dtype(np.float32), size, raw_dtype=types[ours])
    writer.write_header_to_file(target)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    digests = {}
    for ours, theirs in places:
        tensor = _permute(ours, weights.read(theirs), config, inverse=False)
        data = gguf.quants.quantize(np.ascontiguousarray(tensor), types[ours])
        digests[ours] = sha256(data.tobytes()).digest()
        writer.write_tensor_data(data)
    writer.close()
    check_written(target, lambda path: _digests(path) == digests)
    count = sum(int(np.prod(weights.shapes[theirs])) for _, theirs in places)
    return Written(_counted(types), count, _fallback(types, weights.shapes, dict(places), quantised_type))


def to_huggingface(path: Path, config_file: Path, folder: Path) -> Written:
    """De-quantise a GGUF file into `folder`: model.safetensors (float32) beside a copy of the model's config.json.

    Serves to measure what the file, rather than an idea of it, has lost. Works for every type that the gguf package
    can read, K-quants included.
    """
    config = json.loads(config_file.read_text())
    reader = gguf.GGUFReader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tensors, types = {}, {}
    for ours, theirs in _names(config):
        if ours not in stored:
            continue
        tensor = stored[ours]
        types[ours] = tensor.tensor_type
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        tensors[theirs] = torch.from_numpy(np.array(_permute(ours, values, config, inverse=True), order="C"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(config_file.read_bytes())
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    return Written(_counted(types), sum(tensor.numel() for tensor in tensors.values()))


def _digests(path: Path) -> dict[str, bytes]:
    """SHA-256 of each tensor's bytes in a GGUF file."""
    return {tensor.name: sha256(tensor.data.tobytes()).digest() for tensor in gguf.GGUFReader(path).tensors}


def _names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(GGUF name, Hugging Face name) of every tensor a Llama may have, in file order."""
    yield "token_embd.weight", "model.embed_tokens.weight"
    for layer in range(int(config["num_hidden_layers"])):
        for ours, theirs in LAYER_NAMES.items():
            yield f"blk.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight"
    yield "output_norm.weight", "model.norm.weight"
    yield "output.weight", "lm_head.weight"


def _type_of(name: str, shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if wanted != GGMLQuantizationType.F16 and shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    if wanted == GGMLQuantizationType.Q4_0 and name in ("token_embd.weight", "output.weight"):
        return GGMLQuantizationType.Q8_0
    return wanted


def _fallback(
    types: Mapping[str, GGMLQuantizationType],
    shapes: Mapping[str, tuple[int, ...]],
    places: Mapping[str, str],
    wanted: GGMLQuantizationType,
) -> tuple[str, ...]:
    if wanted == GGMLQuantizationType.F16:
        return ()
    halves = (name for name, kind in types.items() if kind == GGMLQuantizationType.F16)
    return tuple(name for name in halves if shapes[places[name]][-1] % BLOCK)


def _permute(name: str, tensor: np.ndarray, config: Mapping[str, Any], inverse: bool) -> np.ndarray:
    """Rows of q and k from half-split to interleaved rotary order: (heads, 2, head_dim/2, in), axes 1 and 2 swapped."""
    if name.endswith("attn_q.weight"):
        heads = int(config["num_attention_heads"])
    elif name.endswith("attn_k.weight"):
        heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    else:
        return tensor
    rows, columns = tensor.shape
    split = (heads, rows // heads // 2, 2, columns) if inverse else (heads, 2, rows // heads // 2, columns)
    return tensor.reshape(split).swapaxes(1, 2).reshape(rows, columns)


def _describe_model(writer: gguf.GGUFWriter, config: Mapping[str, Any], name: str) -> None:
    heads = int(config["num_attention_heads"])
    head_width = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    writer.add_name(name)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))


def _describe_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """Tokens in id order, their types, merges, special ids and the chat template."""
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    if spec["model"]["type"] != "BPE":
        raise LlmcoreError(f"{path}: a {spec['model']['type']} tokenizer; GGUF is written for byte-level BPE")
    ids = dict(spec["model"]["vocab"])
    added = {token["id"]: token for token in spec.get("added_tokens", ())}
    ids.update({token["content"]: number for number, token in added.items()})
    if max(ids.values()) >= rows:
        raise LlmcoreError(
            f"{path}: token id {max(ids.values())} has no row in a model of {rows}; train on this tokenizer"
        )
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [gguf.TokenType.UNUSED] * rows
    for token, number in ids.items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for number, token in added.items():
        types[number] = gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]])

    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.exists() else {}
    adders = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "pad_token": writer.add_pad_token_id,
    }
    for role, add in adders.items():
        token = settings.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            add(ids[token])
    # What the other loaders do is what tokenizer.json does: prepend or append only where its post-processor does.
    encoder = Tokenizer.from_file(str(path))
    plain, framed = (encoder.encode("a", add_special_tokens=special).ids for special in (False, True))
    writer.add_add_bos_token(len(framed) > len(plain) and framed[0] != plain[0])
    writer.add_add_eos_token(len(framed) > len(plain) and framed[-1] != plain[-1])
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.exists() else settings.get("chat_template")
    if isinstance(chat, str):
        writer.add_chat_template(chat)


class _Weights:
    """Tensors of one or more safetensors files by name, read one at a time."""

    def __init__(self, model: Path) -> None:
        files = sorted(model.glob("*.safetensors"))
        if not files:
            raise LlmcoreError(f"{model}: no .safetensors file; export the model first")
        self._handles = [safe_open(file, framework="pt") for file in files]
        self._owner = {name: handle for handle in self._handles for name in handle.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(handle.get_slice(name).get_shape()) for name, handle in self._owner.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32."""
        values: np.ndarray = self._owner[name].get_tensor(name).float().numpy()
        return values


def _counted(types: Mapping[str, GGMLQuantizationType]) -> dict[str, int]:
    names = sorted(kind.name for kind in types.values())
    return {name: names.count(name) for name in dict.fromkeys(names)}
