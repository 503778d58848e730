"""PII: find personal data with Presidio and put typed placeholders (`<EMAIL_ADDRESS>`) in its place.

Method: Microsoft Presidio's recognisers: patterns with checksums and context words in the document's language, and
spaCy's named entities when PERSON, LOCATION, NRP or ORGANIZATION are asked for. Masking few findings and dropping
documents with many is Dolma's policy (Soldaini et al. 2024); leaving addresses alone that nobody on the Internet can
have (private, loopback, documentation) is datatrove's. How findings are made cheap and trustworthy:
`llmcore/text/pii_analysis.py`.
"""

from __future__ import annotations

from collections import Counter

import polars as pl

from llmcore.artifacts.stage import ShardResult, Stage
from llmcore.schema import detail_json, dropped
from llmcore.text.pii_params import PiiParams


def scrub(documents: pl.DataFrame, params: PiiParams) -> ShardResult:
    """Mask the findings in each text; drop documents with more than `max_findings`. Metrics: masks by entity."""
    from llmcore.text.pii_analysis import Analysis, candidates

    texts = documents["text"]
    among = candidates(texts, params.entities)
    rows = list(among)
    languages = documents["lang"] if "lang" in documents.columns else pl.repeat("", len(texts), eager=True)
    analysis = Analysis.of(params)
    masked: list[str] = []
    counts: list[int] = []
    total: Counter[str] = Counter()
    for row, text, language in zip(rows, texts.gather(rows), languages.gather(rows), strict=True):
        findings = analysis.findings(text, language or "", among[row])
        masked.append(mask(text, [(finding.start, finding.end, finding.entity) for finding in findings]))
        counts.append(len(findings))
        if params.max_findings is None or len(findings) <= params.max_findings:
            total.update(finding.entity for finding in findings)
    none = pl.repeat(0, len(texts), dtype=pl.Int64, eager=True)
    scrubbed = documents.with_columns(
        text=texts.scatter(rows, pl.Series(masked, dtype=pl.String)) if rows else texts,
        findings=none.scatter(rows, pl.Series(counts, dtype=pl.Int64)) if rows else none,
    )
    over = pl.lit(False) if params.max_findings is None else pl.col("findings") > params.max_findings
    out = scrubbed.filter(over)
    detail = detail_json(rule="max_findings", value=pl.col("findings"), threshold=params.max_findings or 0)
    kept = scrubbed.filter(~over)
    metrics = {"documents_masked": int((kept["findings"] > 0).sum()), **{name: total[name] for name in sorted(total)}}
    return ShardResult({"kept": kept.drop("findings"), "dropped": dropped(out, "pii", "max_findings", detail)}, metrics)


def mask(text: str, spans: list[tuple[int, int, str]]) -> str:
    """The text with each (start, end, entity) replaced by `<entity>`; spans must not overlap."""
    parts: list[str] = []
    end = 0
    for start, stop, entity in sorted(spans):
        parts += [text[end:start], f"<{entity}>"]
        end = stop
    return "".join((*parts, text[end:]))


STAGE = Stage(
    "pii",
    version=2,
    role="pii",
    params=PiiParams,
    function="llmcore.text.pii:scrub",
    kind="per_shard",
    data="llmcore.text.pii_params:data",
)
