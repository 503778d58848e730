"""What was dropped, to be read: documents that stages removed, each with its rule and the text that it had until then.

The text stands in `kept/` of the step before, in the shard of the same name. So of all texts only the shards that hold
an example are read, one at a time, and of them only the rows in question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from llmcore.account.funnel import NO_SPLIT, RULE, Made, files_under, generation_of_file, labelled, made_of
from llmcore.artifacts.lineage import manifests_behind
from llmcore.artifacts.manifest import Manifest
from llmcore.artifacts.shards import source_of
from llmcore.artifacts.stage import Files
from llmcore.artifacts.store import Store

TABLES_LOOKED_AT = 1000  # of one stage, evenly spread, where no rule is asked for


@dataclass(frozen=True)
class Dropped:
    """One document that a stage removed.

    stage: the step's name. rule: the reason, where the stage names no rule. detail: JSON. text: as it was before the
    stage; None where there was none yet (at ingest, which reads files). url: None where it has none, or none is known.
    """

    id: str
    stage: str
    source: str
    generation: str
    rule: str
    detail: str
    url: str | None = None
    text: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it; keys are the fields."""
        return asdict(self)


def dropped(
    manifests: Iterable[Mapping[str, Any] | Manifest],
    history: Files,
    stage: str = "",
    rule: str = "",
    source: str = "",
    n: int = 10,
) -> list[Dropped]:
    """At most n examples, from as many rules as there are, those of each in the order of their ids, which are hashes: a
    fair draw, the same each time. In chain order.

    manifests: in chain order. history: their files with their step in front. stage: a step, or a stage of several.
    rule, source: of these alone.
    """
    made = list({each.step: each for each in map(made_of, manifests)}.values())
    split = next((each for each in made if each.role == "split"), NO_SPLIT)
    groups: dict[tuple[str, str], list[tuple[str, Dropped]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for each in made:
        if stage not in ("", each.step, each.step.split(" ", 1)[0]):
            continue
        for file, table in _tables(each, history, rule, source, split):
            counts.update({(each.step, name): count for name, count in table["rule"].value_counts().iter_rows()})
            for (name,), part in table.sort("id").group_by("rule", maintain_order=True):
                found = [*groups.get((each.step, str(name)), ()), *_examples(each, file, part.head(n))]
                groups[each.step, str(name)] = sorted(found, key=lambda item: item[1].id)[:n]
    order = {each.step: number for number, each in enumerate(made)}
    chosen = _shared(groups, counts, n)
    chosen.sort(key=lambda item: (order[item[1].stage], item[1].rule, item[1].id))
    return _with_texts(chosen, {each.step: each for each in made}, history)


def dropped_behind(
    store: Store, top: Manifest, stage: str = "", rule: str = "", source: str = "", n: int = 10
) -> list[Dropped]:
    """The same of every stage behind an artifact, itself among them."""
    found = list({manifest.step: manifest for manifest in manifests_behind(store, [top])}.values())
    return dropped(found, labelled(store, found), stage, rule, source, n)


def _tables(made: Made, history: Files, rule: str, source: str, split: Made) -> Iterator[tuple[str, pl.DataFrame]]:
    """(shard, ids with rule and detail) of what a step dropped; the shard is that of the documents before it."""
    names = [name for name in files_under(made.rows, "", "dropped") if made.rows[name]]
    names = [name for name in names if not source or source_of(name) in (source, "")]
    if not rule:
        names = names[:: max(1, -(-len(names) // TABLES_LOOKED_AT))]
    for name in names:
        table = pl.scan_parquet(history.path(f"{made.step}/{name}")).select("id", RULE, "detail")
        found = table.filter(pl.col("rule") == rule if rule else pl.lit(True)).collect()
        if made.role != "versions":
            yield PurePosixPath(name).name, found
            continue
        for shard in files_under(split.rows, "", "kept"):  # its tables hold a generation's, whatever their source
            if generation_of_file(shard) == generation_of_file(name) and source in ("", source_of(shard)):
                ids = pl.scan_parquet(history.path(f"{split.step}/{shard}")).select("id")
                part = found.lazy().join(ids, on="id", how="semi").collect()
                if part.height:
                    yield PurePosixPath(shard).name, part


def _examples(made: Made, file: str, rows: pl.DataFrame) -> Iterator[tuple[str, Dropped]]:
    for id, rule, detail in rows.iter_rows():
        yield file, Dropped(id, made.step, source_of(file), generation_of_file(file), rule, detail)


def _shared(
    groups: Mapping[tuple[str, str], Sequence[tuple[str, Dropped]]], counts: Mapping[tuple[str, str], int], n: int
) -> list[tuple[str, Dropped]]:
    """n of them, in turns from each group, the largest first."""
    order = sorted(groups, key=lambda group: (-counts[group], group))
    longest = max((len(found) for found in groups.values()), default=0)
    turns = (groups[group][turn] for turn in range(longest) for group in order if turn < len(groups[group]))
    return [item for item, _ in zip(turns, range(n), strict=False)]


def _with_texts(chosen: Sequence[tuple[str, Dropped]], made: Mapping[str, Made], history: Files) -> list[Dropped]:
    wanted: dict[tuple[str, str], set[str]] = {}
    for file, example in chosen:
        wanted.setdefault((example.stage, file), set()).add(example.id)
    texts: dict[tuple[str, str], tuple[str | None, str]] = {}
    for (step, file), ids in wanted.items():
        for origin in made[step].origins:
            if origin in made and f"kept/{file}" in made[origin].rows:
                before = pl.scan_parquet(history.path(f"{origin}/kept/{file}")).filter(pl.col("id").is_in(sorted(ids)))
                for id, url, text in before.select("id", "url", "text").collect().iter_rows():
                    texts[step, id] = url, text
    told = []
    for _, example in chosen:
        url, text = texts.get((example.stage, example.id), (None, None))
        told.append(replace(example, url=url, text=text))
    return told
