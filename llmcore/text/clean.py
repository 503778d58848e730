"""Clean: mend mojibake, normalise Unicode and white space, take out boilerplate lines, drop what is empty or too short.

Methods: ftfy (Speer 2019) only where its own badness pattern matches, as it costs more than all the rest; Unicode NFC
(UAX #15); control, zero-width and directional-override characters out; line rules in the manner of RefinedWeb's
(Penedo et al. 2023, appendix G.2): whole lines that are menus, cookie banners or footers. Apart from ftfy, everything
is a polars expression.

`clean(clean(x)) == clean(x)`: the expressions are idempotent in their order, and ftfy runs until nothing changes; a
text on which it does not settle is left unmended.
"""

from __future__ import annotations

import polars as pl
from pydantic import Field, field_validator

from llmcore.artifacts.params import Params
from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.schema import detail_json, dropped

MEND_ROUNDS = 4

LINE_ENDS = "\r\n|[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]"
# Controls other than tab and line feed; soft hyphen, zero-width space, word joiner, byte order mark; directional marks,
# embeddings, overrides and isolates; interlinear anchors; noncharacters. The joiners U+200C and U+200D stay: Persian,
# Hindi and emoji are spelt with them.
INVISIBLE = (
    r"[\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    r"\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff]"
)
BLANKS = r"[\u00a0\u1680\u180e\u2000-\u200a\u202f\u205f\u3000]"

DATE_PART = (  # all that a line of nothing but a date may hold, so that prose that tells of a year stays
    r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day|mon|tue|wed|thu|fri|sat|sun|january|february|march|april|may|june|july"
    r"|august|september|october|november|december|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|at|[ap]\.?m\.?|utc|gmt"
    r"|[cemp][ds]t|\d{1,2}(?:st|nd|rd|th)|[+-]?\d[\d:./-]*(?:t[\d:.]+)?z?)"
)

BOILERPLATE = (
    r"(?:this|our|the) (?:web)?site (?:uses|makes use of) cookies\b.*",
    r"(?:we|we and our partners) (?:and our partners )?use cookies\b.*",
    r"by (?:continuing|using) (?:to (?:browse|use) )?(?:this|our|the) (?:web)?site,? you (?:agree|consent)\b.*",
    r"(?:accept|reject|allow|decline) (?:all )?cookies\.?",
    r"(?:cookie|privacy) (?:policy|settings|preferences|notice|statement)\.?",
    r"(?:terms (?:of (?:use|service)|and conditions|& conditions)|all rights reserved)\.?",
    r"(?:copyright )?(?:©|\(c\)|copyright) ?.{0,80}\ball rights reserved\b.{0,200}",
    r"(?:copyright (?:\(c\)|©)|©|copyright) ?\d{4}\b.{0,200}",
    r"\(c\) ?\d{4}\b(?:[-–, ]*\d{4})*(?:[-–,.]? (?:by )?(?-i:\p{Lu}).{0,200})?",  # not the third item of a list
    r"licensed under the .{1,80} licen[cs]e(?:,? version [\d.]+)?\.?",
    r"(?:except where otherwise noted, )?(?:this|content on this) (?:work|site|page) is licensed under .{1,160}",
    r"available languages: .{0,200}",
    r"comments are closed\.?",
    r"(?:leave|post|add) a (?:comment|reply)\.?",
    r"(?:you must be )?(?:log|logged|sign|signed) in to (?:post a )?(?:comment|reply)\.?",
    r"(?:share|follow us|tweet|like|pin|print|email) (?:this|on) ?(?:(?:page|post|article|on)? ?"
    r"(?:facebook|twitter|x|linkedin|pinterest|reddit|whatsapp|instagram|email)?)\.?",
    r"(?:skip|jump) to (?:main |the )?(?:content|navigation|search)\.?",
    r"(?:back|return|scroll) to (?:the )?top\.?",
    r"(?:home|index|menu|search|login|log in|sign in|sign up|register|subscribe|read more|previous|next|top|←|→|[|·•])"
    r"(?: ?[|·•›»] ?(?:[^|·•›»]{1,30}))*",
    r"(?-i:(?:[^a-z\s>›»][^>›»,;]{0,40} [>›»] ){2,}[^a-z\s>›»][^>›»,;]{0,80})",  # breadcrumbs, each in capitals
    r"(?:sign up|subscribe) (?:for|to) (?:our|the) (?:free )?(?:e-?mail )?newsletter\b.{0,80}",
    r"(?:please )?(?:enable|turn on) javascript\b.{0,120}",
    r"(?:(?:this )?page )?(?:was )?(?:last )?(?:modified|updated|generated)(?: on)?:? "
    rf"{DATE_PART}(?:[, ]+{DATE_PART})*\.?",
    r"powered by (?:wordpress|drupal|joomla|mediawiki|blogger|phpbb|discourse)\b.{0,60}",
    r"\[(?:edit|hide|show|citation needed)\]",
)


class CleanParams(Params):
    """What is mended and what is taken out."""

    mend_mojibake: bool = Field(True, description="undo wrong decodings (UTF-8 read as Latin-1 and the like) with ftfy")
    boilerplate: tuple[str, ...] = Field(
        BOILERPLATE, description="regular expressions; a line that one of them matches from end to end is taken out"
    )
    min_characters: int = Field(100, ge=1, description="a document with less text after cleaning is dropped")

    @field_validator("boilerplate")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                pl.Series([""]).str.contains(_whole_line((pattern,)))
            except pl.exceptions.ComputeError as error:
                reason = " ".join(str(error).split())[-120:]
                raise ValueError(f"{pattern!r} is not a regular expression: {reason}") from None
        return patterns


def clean(documents: pl.DataFrame, params: CleanParams) -> ShardResult:
    """Replace each text by its cleaned form; drop with `empty` or `too_short`."""
    before = documents["text"]
    mended, repaired = cleaned(before, params)
    after = documents.with_columns(text=mended)
    characters = pl.col("text").str.len_chars()
    short = after.filter(characters < params.min_characters)
    reason = pl.when(characters == 0).then(pl.lit("empty")).otherwise(pl.lit("too_short"))
    detail = detail_json(rule="min_characters", value=characters, threshold=params.min_characters)
    metrics = {
        "changed": int((before != mended).sum()),
        "mojibake_mended": repaired,
        "characters_before": int(before.str.len_chars().sum()),
        "characters_after": int(mended.str.len_chars().sum()),
    }
    kept = after.filter(characters >= params.min_characters)
    return ShardResult({"kept": kept, "dropped": dropped(short, "clean", reason, detail)}, metrics)


def cleaned(texts: pl.Series, params: CleanParams) -> tuple[pl.Series, int]:
    """The cleaned texts (String, no nulls), and how many of them ftfy mended."""
    texts = texts.fill_null("")
    plain = _plain(texts, params)
    if not params.mend_mojibake:
        return plain, 0
    # what an invisible character keeps apart may be mojibake without it
    suspect = pl.concat([_suspects(texts), _suspects(plain)]).unique().sort()
    if not len(suspect):
        return plain, 0
    first = plain.gather(suspect)
    mended, settled = _settle(texts.gather(suspect), params)
    if not settled.all():  # start again from what is plain, so that cleaning twice is cleaning once
        second, settled_now = _settle(first, params)
        again = pl.when(settled_now).then(second).otherwise(first)
        mended = pl.select(pl.when(settled).then(mended).otherwise(again)).to_series()
    return plain.scatter(suspect, mended), int((mended != first).sum())


def _settle(texts: pl.Series, params: CleanParams) -> tuple[pl.Series, pl.Series]:
    """Mend and normalise until nothing changes: the texts, and which of them came to rest."""
    for _ in range(MEND_ROUNDS):
        again = _plain(pl.Series([_mend(text) for text in texts], dtype=pl.String), params)
        settled = again == texts
        if settled.all():
            break
        texts = again
    return texts, settled


def _suspects(texts: pl.Series) -> pl.Series:
    """Rows that ftfy's pattern calls likely mojibake; only those with characters beyond ASCII are looked at."""
    beyond = (texts.str.len_bytes() != texts.str.len_chars()).arg_true()
    if not len(beyond):
        return beyond
    from ftfy.badness import is_bad

    return beyond.filter(pl.Series([is_bad(text) for text in texts.gather(beyond)], dtype=pl.Boolean))


def _plain(texts: pl.Series, params: CleanParams) -> pl.Series:
    """Everything but ftfy: Unicode, white space, boilerplate lines."""
    normal = (
        texts.str.replace_all(LINE_ENDS, "\n")
        .str.replace_all(INVISIBLE, "")
        .str.replace_all(BLANKS, " ")
        .str.normalize("NFC")
        .str.replace_all(r"[ \t]+\n", "\n")
        # indentation stays, which is meaning in code and lists, and so do tabs alone, which part a table's cells
        .str.replace_all(r"([^ \t\n])(?:[ \t]+ [ \t]*| [ \t]+)", "$1 ")
    )
    without = _without_lines(normal, params.boilerplate) if params.boilerplate else normal
    return without.str.replace_all(r"\n{3,}", "\n\n").str.strip_chars("\n").str.strip_chars_end(" \t\n")


def _without_lines(texts: pl.Series, patterns: tuple[str, ...]) -> pl.Series:
    pattern = _whole_line(patterns)
    suspect = texts.str.contains("(?m)" + pattern).arg_true()
    if not len(suspect):
        return texts
    lines = (
        pl.DataFrame({"row": suspect, "line": texts.gather(suspect)})
        .with_columns(pl.col("line").str.split("\n"))
        .explode("line")
        .filter(~pl.col("line").str.contains(pattern))
    )
    left = lines.group_by("row", maintain_order=True).agg(pl.col("line").str.join("\n"))
    emptied = texts.scatter(suspect, pl.repeat("", len(suspect), eager=True))
    return emptied.scatter(left["row"], left["line"])


def _whole_line(patterns: tuple[str, ...]) -> str:
    return "(?i:^[ \t]*(?:" + "|".join(f"(?:{pattern})" for pattern in patterns) + ")[ \t]*$)"


def _mend(text: str) -> str:
    """Undo wrong decodings, line by line: one line that is no mojibake must not keep the others from being mended."""
    from ftfy import fix_encoding

    return "\n".join(fix_encoding(line) if not line.isascii() else line for line in text.split("\n"))


STAGE = Stage("clean", version=3, params=CleanParams, function="llmcore.text.clean:clean", kind="per_shard")
