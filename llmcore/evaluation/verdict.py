"""What an evaluation's numbers mean, in one or two sentences for whoever made the model.

The model is held against what costs nothing: byte n-grams that read the same text. To be worse than one says that there
was too little text, or that there were too few steps. That up to four passes over the same text are nearly as good as
new text is from Muennighoff et al. 2023, "Scaling Data-Constrained Language Models".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LADDER = (  # from the strongest down
    ("ngram_7", "a byte 7-gram"),
    ("ngram_5", "a byte 5-gram"),
    ("unigram", "a byte unigram"),
    ("uniform", "guessing at random"),
)
WORTHWHILE_PASSES = 4.0
FEW_DOCUMENTS = 10  # held out: below it the score itself is uncertain
WIDE_GAP = 0.15  # of the validation score: what is trained on is known so much better that it is learned by heart
MANY_REPEATED = 0.05  # of the places in trained text that the model goes on from word for word


def verdict(metrics: Mapping[str, Any]) -> str:
    """One or two sentences of plain text: better or worse than which baseline, and what to try.

    metrics: those of an evaluation (`stage.py`); what is missing is not spoken of. "" where nothing was scored.
    """
    split = next((split for split in ("test", "validation") if f"{split}_bits_per_byte" in metrics), "")
    if not split:
        return ""
    return " ".join(filter(None, (_standing(metrics, split), _caution(metrics, split))))


def _standing(metrics: Mapping[str, Any], split: str) -> str:
    """Where the model stands among the baselines, and what to try if that is not above them."""
    score = float(metrics[f"{split}_bits_per_byte"])
    rivals = [(key, name) for key, name in LADDER if f"{split}_{key}" in metrics]
    if not rivals:
        return f"{score:.3f} bits per byte on held-out text."
    above = next(((key, name) for key, name in rivals if score < float(metrics[f"{split}_{key}"])), None)
    below = [(key, name) for key, name in rivals if score >= float(metrics[f"{split}_{key}"])]
    if above is None:
        return f"No better than {rivals[-1][1]} ({score:.3f} bits per byte): it has learned nothing; {_broken()}."
    if not below:
        key, name = above
        rival = float(metrics[f"{split}_{key}"])
        if _unclear(metrics, split, key):
            return (
                f"No clear difference from {name} ({score:.3f} against {rival:.3f} bits per byte); {_advice(metrics)}."
            )
        share = f"{100 * (1 - score / rival):.0f} % less"
        return f"Better than {name} that read the same text: {score:.3f} against {rival:.3f} bits per byte ({share})."
    key, name = below[-1]
    worse = f"Worse than {name} ({score:.3f} against {float(metrics[f'{split}_{key}']):.3f} bits per byte)"
    if key == "unigram":
        return f"{worse}: it has learned next to nothing; {_broken()}."
    better = f", better than {above[1]}" if above[0] == "ngram_5" else ""
    return f"{worse}{better}: too little text or too few steps; {_advice(metrics)}."


def _unclear(metrics: Mapping[str, Any], split: str, key: str) -> bool:
    """Whether the paired interval of model minus baseline reaches zero."""
    high = metrics.get(f"{split}_minus_{key}_high")
    return high is not None and float(high) >= 0


def _broken() -> str:
    return "train for more steps (train.epochs), and look whether the loss falls (train.learning_rate)"


def _advice(metrics: Mapping[str, Any]) -> str:
    passes = metrics.get("passes")
    if passes is None:
        return "try more train.epochs (up to 4), more text, or a smaller model"
    if float(passes) < WORTHWHILE_PASSES:
        return f"try more train.epochs ({float(passes):.2g} so far, up to {WORTHWHILE_PASSES:g} pay), or more text"
    return "try more text, or a smaller model"


def _caution(metrics: Mapping[str, Any], split: str) -> str:
    """What else the reader has to know, the gravest alone."""
    repeated, new = metrics.get("memorised_train"), metrics.get("memorised_held_out")
    if repeated is not None and float(repeated) >= max(MANY_REPEATED, 2 * float(new or 0.0)):
        share = f"{100 * float(repeated):.0f} %"
        return f"It repeats {share} of the places it was trained on word for word: add text or lower train.epochs."
    gap, base = metrics.get("gap"), metrics.get("validation_bits_per_byte")
    sure = float(metrics.get("gap_low", gap) or 0.0) > 0
    if gap is not None and base and sure and float(gap) > WIDE_GAP * float(base):
        return (
            f"It knows what it was trained on {float(gap):.2f} bits per byte better than new text: "
            "add text or lower train.epochs."
        )
    documents = metrics.get(f"{split}_documents")
    if documents is not None and int(documents) < FEW_DOCUMENTS:
        count = f"{int(documents)} documents are" if int(documents) != 1 else "one document is"
        return f"Only {count} held out, so the score is rough: raise split.{split}."
    return ""
