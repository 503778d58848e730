"""The publish gate: what must hold of a model folder before anybody gets it. It fails closed.

Logits, not key names, are compared: key and shape checks have passed on exports whose logits were 38 % off
(open-instruct #1839). Tokenizers are compared on a corpus of awkward strings, because that is where loaders differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from llmcore.errors import LlmcoreError
from llmcore.model import huggingface
from llmcore.release.k_quants import silent
from llmcore.release.lineage import unlisted

TOLERANCE = 1e-4  # largest difference of a logit in fp32
GGUF_TOLERANCE = 1e-3  # mean KL divergence in nats of llama.cpp's next-token distribution at f16
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md", "lineage.json")
PROBE_LENGTH = 64  # tokens of each text whose logits are compared
AWKWARD_TEXTS = (
    "The state of the Union is strong.",
    "  two  spaces,\ttabs\t\tand   trailing ",
    "line\nbreaks\r\nof\n\n\nall kinds\n \n",
    "it's we'll I'M they'd've CAN'T",
    "3.14159 1,000,000 12345678901234567890 ½ ² １２３ ٣٤",
    "naïve café e\u0301 Ångström ﬁligree ß İ ı ſ",
    "日本語のテキスト。 한국어 文字 русский العربية עברית हिन्दी ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 ☕️ \U0001f1e9\U0001f1ea",
    "\u00a0non\u00a0breaking \u3000ideographic \u200bzero\u200d \ufeffmark \u2028line",
    "<|endoftext|>after <|user|>hello<|assistant|> <|end|><|reserved_0|><|no_such_token|>",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2} # ünïcode\n",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "a" * 300,
    "\x00\x01\x7f control",
    " ",
    "",
)


@dataclass(frozen=True)
class Verdict:
    """What the gate saw: `loader` is whose logits were compared, `logits` their largest difference."""

    loader: str
    logits: float
    texts: int

    def plain(self) -> dict[str, Any]:
        return {"loader": self.loader, "tolerance": TOLERANCE, "texts": self.texts}


def check_loaders(folder: Path, original: Path) -> Verdict:
    """Logits and tokens of the exported folder equal those of the model it was made from.

    With transformers installed it loads the folder as anybody would; without it our own loader does.
    Raises LlmcoreError naming the text on which they differ.
    """
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    window = int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
    probes = [encoder.encode(text).ids[: min(window, PROBE_LENGTH)] for text in AWKWARD_TEXTS if text]
    ours = huggingface.load(original).float().eval()
    if find_spec("transformers") is not None:
        loader, theirs = "transformers", _transformers_logits(folder)
        _check_tokens(folder, encoder)
    else:
        loader, reloaded = "llmcore", huggingface.load(folder).float().eval()
        theirs = reloaded
    largest = 0.0
    with torch.inference_mode():
        for text, probe in zip((text for text in AWKWARD_TEXTS if text), probes, strict=True):
            tokens = torch.tensor([probe])
            difference = float((ours(tokens) - theirs(tokens)).abs().max())
            if not difference < TOLERANCE:
                raise LlmcoreError(
                    f"publish gate: {loader}'s logits differ from ours by {difference:.2g} on {text[:40]!r}; "
                    "nothing was published"
                )
            largest = max(largest, difference)
    return Verdict(loader, largest, len(AWKWARD_TEXTS))


def check_gguf(folder: Path, original: Path) -> bool:
    """The f16 GGUF file reads and thinks as the model does; False where llama.cpp is not at hand to say so.

    Distributions are compared, because llama.cpp keeps weights and cache in 16 bits; a wrong layout is off by far more.
    """
    path = folder / "model-f16.gguf"
    if not path.is_file() or find_spec("llama_cpp") is None:
        return False
    import llama_cpp

    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours = huggingface.load(original).float().eval()
    longest = min(PROBE_LENGTH, ours.config.window)
    with silent(), closing(llama_cpp.Llama(str(path), n_ctx=longest, logits_all=True, verbose=False)) as theirs:
        for text in AWKWARD_TEXTS:
            expected = encoder.encode(text).ids
            if theirs.tokenize(text.encode(), add_bos=True, special=True) != expected:
                raise LlmcoreError(f"publish gate: llama.cpp has other tokens for {text[:40]!r}; nothing was published")
            probe = expected[:longest]
            if not probe:
                continue
            theirs.reset()
            theirs.eval(probe)
            found = torch.from_numpy(theirs.scores[: len(probe)]).log_softmax(-1)
            with torch.inference_mode():
                wanted = ours(torch.tensor([probe]))[0].log_softmax(-1)
            divergence = float((wanted.exp() * (wanted - found)).sum(-1).mean())
            if not divergence < GGUF_TOLERANCE:
                raise LlmcoreError(
                    f"publish gate: llama.cpp's prediction for {text[:40]!r} is off by {divergence:.2g} nats; "
                    "nothing was published"
                )
    return True


def check_folder(folder: Path, bill: Mapping[str, Any]) -> None:
    """Every file that a reader relies on is there, has a digest in lineage.json, and lineage reaches a source."""
    for name in REQUIRED:
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            raise LlmcoreError(f"publish gate: {name} is missing or empty; nothing was published")
    for name in unlisted(folder, bill):
        raise LlmcoreError(f"publish gate: {name} is not what lineage.json says; nothing was published")
    if not bill["sources"]:
        raise LlmcoreError("publish gate: lineage.json names no source; publish needs the role 'history'")
    # A model made from nothing that is known is not published.
    if not any(edge["to"] == "published" for edge in bill["edges"]):
        raise LlmcoreError("publish gate: lineage.json does not lead to the model; nothing was published")


def _transformers_logits(folder: Path) -> Any:
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    return lambda tokens: model(input_ids=tokens).logits


def _check_tokens(folder: Path, encoder: Tokenizer) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.model_max_length = 1 << 30  # some texts are longer than a small window, which it would warn of
    for text in AWKWARD_TEXTS:
        ours, theirs = encoder.encode(text).ids, tokenizer(text)["input_ids"]
        if ours != theirs:
            raise LlmcoreError(
                f"publish gate: transformers reads {text[:40]!r} as {theirs[:8]}, tokenizers as {ours[:8]}; "
                "nothing was published"
            )
        if encoder.decode(ours, skip_special_tokens=False) != tokenizer.decode(theirs, skip_special_tokens=False):
            raise LlmcoreError(f"publish gate: transformers decodes {text[:40]!r} otherwise; nothing was published")
