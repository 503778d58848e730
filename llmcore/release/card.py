"""README.md: the model card, with the YAML front matter that the Hugging Face Hub reads.

Documents are hostile: what comes from them (sources, addresses, reasons, samples) is escaped for Markdown or fenced.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmcore.release.facts import Facts, over_generations

# The Hub writes SPDX identifiers in lower case, and "other" where it does not know one.
HUB_LICENCES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "mpl-2.0", "gpl-3.0"}
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!])")


def card(facts: Facts) -> str:
    """The card as Markdown."""
    environment = Environment(
        loader=PackageLoader("llmcore.release"),
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": markdown,
        "signed": signed,
        "number": number,
        "size": size,
        "interval": interval,
        "fenced": fenced,
        "yaml": json.dumps,
        "python": lambda text: json.dumps(text, ensure_ascii=False),
        "shell": shlex.quote,
        "hyperparameters": lambda params: json.dumps(params, indent=1, sort_keys=True),
        "basename": lambda name: str(name).rsplit("/", 1)[-1],
    }
    return environment.get_template("card.md.j2").render(**view(facts))


def view(facts: Facts) -> dict[str, Any]:
    """What both templates show, worked out from the facts."""
    formats = facts.quantisation.get("formats", [])
    crawls = {door.step.removeprefix("crawl ") for door in facts.funnel.fetched}
    sources = list(dict.fromkeys(row["source"] for row in facts.funnel.sources))
    return {
        "facts": facts,
        "config": facts.config,
        "rows": over_generations(facts.funnel.rows),
        "train": facts.funnel.splits[0],
        "seen": int(facts.history["tokens"].max() or 0) if facts.history.height else 0,  # type: ignore[arg-type]
        "score": facts.score("model"),
        "splits": [name for name in ("validation", "test") if any(name in row["splits"] for row in facts.scores)],
        "memorised": facts.memorisation,
        "quantised": {"full": None, "measured_on": {"tokens": 0}, **facts.quantisation},
        "gguf": next((row["file"].rsplit("/", 1)[-1] for row in formats if row["format"] == "q8_0"), None)
        or next((row["file"].rsplit("/", 1)[-1] for row in formats), None),
        "languages": facts.funnel.languages,
        "crawled": [name for name in sources if name in crawls],
        "provided": [name for name in sources if name not in crawls],
        "forbidden": sum(door.outcomes.get("forbidden", 0) for door in facts.funnel.fetched),
        "hub_licence": facts.licence.lower() if facts.licence.lower() in HUB_LICENCES else "other",
        "default_description": "A small language model and the record of how it was made.",
    }


def markdown(text: object) -> str:
    """Text as it is, on one line: no character of it means anything to Markdown or HTML."""
    escaped = MARKDOWN.sub(r"\\\1", " ".join(str(text).split()).replace("&", "&amp;"))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")


def number(value: float) -> str:
    """12345 -> "12,345"."""
    return f"{value:,.0f}"


def signed(value: float) -> str:
    """-0.00001 -> "+0.0000", because a minus before nothing misleads."""
    return f"{round(value, 4) + 0.0:+.4f}"


def size(bytes_: float | None) -> str:
    """1234567 -> "1.2 MB"; unknown is a dash."""
    if bytes_ is None:
        return "–"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes_ >= factor:
            return f"{bytes_ / factor:.1f} {unit}"
    return f"{bytes_:.0f} B"


def interval(score: Mapping[str, float | None]) -> str:
    """1.234 (1.20-1.26)."""
    text = f"{score['value']:.3f}"
    if score.get("low") is None or score.get("high") is None:
        return text
    return f"{text} ({score['low']:.3f}–{score['high']:.3f})"


def fenced(sample: Mapping[str, str]) -> str:
    """A sample as a code block that its own back-ticks cannot close."""
    text = f"{sample.get('prompt', '')}{sample.get('text', '')}".replace("\r", "")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
