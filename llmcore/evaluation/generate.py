"""A model of the store writes on, from prompts that somebody gives."""

from __future__ import annotations

from collections.abc import Sequence

from llmcore.artifacts.export import gather
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.recipe import StoreFiles
from llmcore.artifacts.store import Store
from llmcore.artifacts.working import working_folder
from llmcore.errors import UsageError

MODEL = ("config.json", "model.safetensors")
TOKENIZER = "tokenizer.json"
DEVICES = ("auto", "cpu", "cuda")


def generate(
    store: Store,
    made: Manifest,
    prompts: Sequence[str],
    tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 1,
    device: str = "auto",
) -> list[dict[str, str]]:
    """One text a prompt: [{prompt, text}]; the same ones from the same model, settings and device.

    made:   a published model, or a trained one, whose tokenizer is then the one that it was trained with.
    device: auto, cpu or cuda.
    Raises UsageError if the artifact holds no model, or this machine has no such device.
    """
    missing = [name for name in MODEL if name not in made.outputs]
    if missing:
        raise UsageError(f"{made.stage}/{made.key[:12]} holds no model; name a published model, or a `train` artifact")
    if device not in DEVICES:
        raise UsageError(f"--device {device}: there are {', '.join(DEVICES)}")
    vocabulary = made
    if TOKENIZER not in made.outputs:
        vocabulary = next(each for each in manifests_behind(store, [made]) if each.role == "tokenizer")

    from llmcore.evaluation.samples import write_samples
    from llmcore.model.device import device_of
    from llmcore.model.huggingface import load
    from llmcore.tokens.tokenizer import end_of_text, load_tokenizer

    where = device_of(device)
    tokenizer = load_tokenizer(StoreFiles(store, vocabulary.outputs))
    with working_folder() as folder:
        gather(StoreFiles(store, made.outputs), MODEL, folder)
        model = load(folder).to(where)
    return write_samples(model, tokenizer, prompts, end_of_text(tokenizer), tokens, temperature, top_k, seed)
