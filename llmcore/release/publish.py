"""Publish: the folder that other people's tools load, with its card, its report and the record of where it comes from.

It fails closed: nothing leaves unless the exported folder gives the trained model's logits and tokens (`gate.py`),
every file has its digest in lineage.json, and licence and sources are named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from llmcore.artifacts.export import gather
from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import Files, Run, Stage
from llmcore.artifacts.working import working_folder
from llmcore.release.licences import DEFAULT
from llmcore.release.quantise import MODEL_FILES, TOKENIZER_FILES

BUNDLED_LICENCES = ("Apache-2.0", "CC0-1.0")
ROLES = ("model", "tokenizer", "quantised", "evaluation", "plan")  # of the artifacts that it describes


class PublishParams(Params):
    name: str = Field("", max_length=100, description="name of the model on its card; empty: the configuration's name")
    licence: str = Field(
        "",
        description=f"SPDX identifier of the model's licence; empty: {DEFAULT}, where its sources' licences allow it",
    )
    licence_text: str = Field("", description="its full text; needed unless it is Apache-2.0 or CC0-1.0")
    description: str = Field("", description="one or two sentences for the card")

    @model_validator(mode="after")
    def _has_text(self) -> PublishParams:
        if self.licence and not self.licence_text and self.licence not in BUNDLED_LICENCES:
            raise ValueError(
                f"no text of licence {self.licence!r} is bundled: give it as licence_text, or take one of "
                + ", ".join(BUNDLED_LICENCES)
            )
        return self


def publish(inputs: Mapping[str, Files], params: PublishParams, run: Run) -> dict[str, Any]:
    """Assemble the folder, pass it through the gate, describe it.

    Roles: model, tokenizer, quantised, evaluation, plan, history (all earlier artifacts' files, "<step>/<file>").
    Raises LlmcoreError, and leaves nothing, when the gate does not hold.
    """
    from llmcore.release import gate, lineage
    from llmcore.release.card import card
    from llmcore.release.facts import gather_facts
    from llmcore.release.report import report

    folder, licence = run.out, params.licence or DEFAULT
    run.progress(0, 4, "assembling the folder")
    gather(inputs["model"], MODEL_FILES, folder)
    gather(inputs["tokenizer"], TOKENIZER_FILES, folder)
    _say_window(folder)
    for name in inputs["quantised"].names("gguf/"):
        shutil.copyfile(inputs["quantised"].path(name), folder / Path(name).name)
    (folder / "generation_config.json").write_text(_generation_config(folder))
    (folder / "LICENSE").write_text(_licence_text(licence, params.licence_text), encoding="utf-8")

    run.progress(1, 4, "comparing logits and tokens")
    with working_folder() as temporary:
        gather(inputs["model"], MODEL_FILES, temporary)
        verdict = gate.check_loaders(folder, temporary)
        gate.check_gguf(folder, temporary)

    run.progress(2, 4, "counting documents")
    manifests = run.lineage()
    steps = lineage.input_steps(manifests, ROLES)
    facts = gather_facts(inputs, params.name, licence, params.description, folder, manifests, steps, verdict.plain())
    (folder / "README.md").write_text(card(facts), encoding="utf-8")
    (folder / "report.html").write_text(report(facts), encoding="utf-8")
    bill = lineage.bill_of_materials(folder, manifests, steps, facts.funnel.sources, params.name, licence)
    (folder / "lineage.json").write_text(
        json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )

    run.progress(3, 4, "checking the folder")
    gate.check_folder(folder, json.loads((folder / "lineage.json").read_text(encoding="utf-8")))
    score = facts.score("model")
    return {
        "parameters": facts.parameters,
        "files": len(bill["files"]) + 1,
        "bytes": sum(entry["bytes"] for entry in bill["files"].values()),
        "gate": verdict.loader,
        "test_bits_per_byte": score["value"] if score else None,
    }


def _generation_config(folder: Path) -> str:
    """Greedy by default; generation ends at the end of a document or, where there is one, of a turn."""
    config = json.loads((folder / "config.json").read_text())
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in spec.get("added_tokens", ())}
    ends = [ids[token] for token in ("<|endoftext|>", "<|end|>") if token in ids] or [config.get("eos_token_id")]
    settings = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": config.get("pad_token_id"),
        "do_sample": False,
    }
    return json.dumps({name: value for name, value in settings.items() if value is not None}, indent=2) + "\n"


def _say_window(folder: Path) -> None:
    """Tell the tokenizer how much the model reads, so that whoever asks it to cut a text has it cut there."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model_max_length"] = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _licence_text(licence: str, text: str) -> str:
    if text:
        return text.rstrip() + "\n"
    return (package_files("llmcore.release") / "templates" / f"{licence}.txt").read_text(encoding="utf-8")


STAGE = Stage(
    "publish",
    version=4,
    role="published",
    params=PublishParams,
    function="llmcore.release.publish:publish",
    tells_lineage=True,
)
