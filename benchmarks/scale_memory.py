"""Peak memory of every stage against the number of documents, each stage in a process of its own.

    python benchmarks/scale_memory.py [--documents N,N,…] [--stages NAME,…] [--against CHECKOUT] [--folder PATH]

Documents are synthetic: 4 kB each, of some 200,000 words and one word in fifty that occurs once, in shards of 16,384
(the default of 64 MiB). Signatures, signals and tokens of the first shard are made by their stages; the other shards
have the same under their own ids. Global stages run at each size, per-shard stages over one shard. The peak is that of
the process and its children (sampled) or of the process alone (the kernel's mark), whichever is higher; `imports` is
what the process held before the stage began. Prints one JSON line: megabytes a size, bytes a document (least squares),
and what that gives for a million documents where they were not run. `--against` measures another checkout beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
SHARD = 16_384
MILLION = 1_000_000
WINDOW = 512
WORDS, SENTENCES, SENTENCES_EACH = 200_000, 40_000, 38
POLL_SECONDS = 0.05
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with", "a", "in", "is", "it", "for", "on")
PER_SHARD = (
    "text.extract",
    "text.clean",
    "text.trim",
    "text.language",
    "text.pii",
    "selection.dedup:SIGNATURES",
    "selection.dedup",
    "selection.signals",
    "selection.quality",
    "selection.decontaminate",
    "selection.split",
    "tokens.tokenise",
)
GLOBALLY = (
    "text.site_lines",
    "selection.dedup:RESOLVE",
    "selection.classifier",
    "selection.decontaminate:BENCHMARKS",
    "selection.versions",
    "tokens.tokenizer",
    "tokens.pack",
    "training.loader",
    "evaluation.stage",
    "release.quantise",
    "release.publish",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", default="32768,65536,131072,262144", help="sizes, multiples of a shard")
    parser.add_argument("--stages", default=",".join((*PER_SHARD, *GLOBALLY)), help="modules below llmcore")
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--folder", type=Path, help="where the documents lie, or are made; kept")
    parser.add_argument("--child", nargs=3, metavar=("STAGE", "SHARDS", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        stage, shards, out = given.child
        print(json.dumps(child(stage, given.folder, int(shards), Path(out))))
        return
    sizes = [max(1, round(int(size) / SHARD)) for size in given.documents.split(",")]
    with TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        write(folder, max(sizes))
        stages = {}
        for stage in given.stages.split(","):
            stages[stage] = measure(stage, folder, [1] if stage in PER_SHARD else sizes, given.against)
    print(json.dumps({"benchmark": "scale_memory", "shard_documents": SHARD, "stages": stages}))


def measure(stage: str, folder: Path, sizes: Sequence[int], against: Path | None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for prefix, checkout in (("", ROOT), *((("against_", against),) if against else ())):
        found = [run(stage, folder, shards, checkout) for shards in sizes]
        documents = [shards * SHARD for shards in sizes]
        peaks = [row["peak"] for row in found]
        result[f"{prefix}imports_mb"] = round(max(row["imports"] for row in found) / 1e6)
        result[f"{prefix}peak_mb"] = {count: round(peak / 1e6) for count, peak in zip(documents, peaks, strict=True)}
        result[f"{prefix}seconds"] = {count: row["seconds"] for count, row in zip(documents, found, strict=True)}
        if len(sizes) > 1:
            slope, start = np.polyfit(documents, peaks, 1)
            result[f"{prefix}bytes_a_document"] = round(float(slope))
            result[f"{prefix}million_mb"] = round((start + slope * MILLION) / 1e6)
        print(stage, {name: value for name, value in result.items() if name.startswith(prefix)}, file=sys.stderr)
    return result


def run(stage: str, folder: Path, shards: int, checkout: Path) -> dict[str, Any]:
    """One stage in a process that imports llmcore from a checkout; its peak with that of its children."""
    plan = folder / f"plan-{shards}"
    if stage in ("training.loader", "evaluation.stage") and not plan.exists():
        plan.mkdir()
        command = [sys.executable, __file__, "--folder", str(folder), "--child", "tokens.pack", str(shards), str(plan)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{ROOT}"}, stdout=subprocess.DEVNULL, check=True)
    with TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, __file__, "--folder", str(folder), "--child", stage, str(shards), out]
        environment = {**os.environ, "PYTHONPATH": f"{checkout.resolve()}", "TMPDIR": out}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        sampled = 0
        while process.poll() is None:
            sampled = max(sampled, sum(map(resident, family(process.pid))))
            time.sleep(POLL_SECONDS)
        assert process.stdout is not None
        if process.returncode:
            return {"imports": 0, "peak": 0, "seconds": -1.0}
        found: dict[str, Any] = json.loads(process.stdout.read())
        return {**found, "peak": max(found["peak"], sampled)}


def child(stage: str, folder: Path, shards: int, out: Path) -> dict[str, Any]:
    """Run a stage; bytes held before it began, and at most."""
    corpus = Corpus(folder, shards)
    work = corpus.shard_job(stage) if stage in PER_SHARD else corpus.global_job(stage, out)
    imports, began = held("VmRSS"), time.perf_counter()
    work()
    return {"imports": imports, "peak": held("VmHWM"), "seconds": round(time.perf_counter() - began, 1)}


@dataclass
class Files:
    """What a stage sees of its inputs: names and where they lie."""

    paths: Mapping[str, Path]

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.paths if name.startswith(prefix))

    def path(self, name: str) -> Path:
        return self.paths[name]

    def table(self, prefix: str = "") -> pl.DataFrame:
        return pl.concat([table for _, table in self.tables(prefix)])

    def tables(self, prefix: str = "") -> Iterator[tuple[str, pl.DataFrame]]:
        for name in self.names(prefix):
            yield name, pl.read_parquet(self.paths[name])


@dataclass
class Run:
    """What a stage may use of its surroundings."""

    root: Path
    manifests: Sequence[Mapping[str, Any]] = ()
    outside: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out, self.scratch = self.root / "out", self.root / "scratch"
        self.out.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(parents=True, exist_ok=True)

    def lineage(self) -> Sequence[Mapping[str, Any]]:
        return self.manifests

    def progress(self, done: float, total: float, text: str = "") -> None: ...

    def carry(self, role: str, prefix: str = "") -> None: ...

    def keep_scratch(self) -> None: ...


@dataclass
class Corpus:
    """The first shards of a folder that `write` made, as inputs of stages."""

    folder: Path
    shards: int

    def files(self, *parts: str, under: str = "") -> Files:
        """The files of some artifacts; those that are in shards only as far as this corpus goes."""
        found = {}
        for part in parts:
            for path in sorted((self.folder / part).rglob("*")):
                number = re.search(r"-(\d{5})\.parquet$", path.name)
                if path.is_file() and not (number and int(number.group(1)) >= self.shards):
                    found[under + str(path.relative_to(self.folder / part))] = path
        return Files(found)

    def shard_job(self, stage: str) -> Callable[[], object]:
        _module, what = load(stage)
        shard = name_of(0)
        documents = pl.read_parquet(self.folder / "documents/kept" / shard)
        sides: dict[str, Callable[[], dict[str, Any]]] = {
            "text.trim": lambda: {"site_lines": self.files("site_lines")},
            "selection.dedup": lambda: {"decisions": decisions(documents)},
            "selection.quality": lambda: {
                "signals": pl.read_parquet(self.folder / "signals/signals" / shard),
                "classifier": self.files("classifier"),
            },
            "selection.decontaminate": lambda: {"benchmarks": self.files("benchmarks")},
            "tokens.tokenise": lambda: {"tokenizer": self.files("tokenizer")},
        }
        side = sides.get(stage, dict)()
        if stage == "selection.split":
            documents = documents.drop("split").with_columns(cluster=pl.col("id"))
        function, params = what.load(), what.params()
        return lambda: function(documents, params, **side)

    def global_job(self, stage: str, out: Path, **params: Any) -> Callable[[], object]:
        documents, tokens = self.files("documents"), self.files("tokens")
        model, tokenizer = self.files("model"), self.files("tokenizer")
        if stage == "training.loader":
            return lambda: self.fetch_batches(tokens)
        if stage == "tokens.pack":
            inputs: dict[str, Files] = {"tokens": tokens}
        elif stage == "selection.versions":
            inputs = self.two_generations()
        elif stage == "release.publish":
            inputs = {"model": model, "tokenizer": tokenizer, "plan": Files({})}
            inputs |= {"quantised": self.files("quantised"), "evaluation": self.files("evaluation")}
            inputs["history"] = Files({name: path for step in HISTORY for name, path in self.told(step).items()})
        else:
            inputs = {"documents": documents, "tokens": tokens, "model": model, "tokenizer": tokenizer}
            inputs |= {"signatures": self.files("signatures"), "signals": self.files("signals")}
            if stage == "evaluation.stage" and find_spec("llmcore.training.exposure"):
                inputs |= self.read(model)
        _, what = load(stage)
        function = what.load()
        run = Run(out, [self.manifest(step) for step in HISTORY] if stage == "release.publish" else ())
        return lambda: function(inputs, what.params(**params), run)

    def two_generations(self) -> dict[str, Files]:
        """Documents and decisions, the last tenth of the shards being a refresh that found new versions of others."""
        later = max(1, self.shards // 10)
        documents, decided = {}, {}
        for number in range(self.shards):
            first = number < self.shards - later
            name = name_of(number) if first else name_of(number).replace("g000", "g001")
            documents[f"kept/{name}"] = self.folder / "documents/kept" / name_of(number)
            ids = pl.read_parquet(documents[f"kept/{name}"], columns=["id"])
            address = (number if first else number - later) * SHARD + pl.int_range(pl.len(), dtype=pl.UInt64)
            nothing = pl.lit(None, pl.String).alias("duplicate_of")
            tables = {"decisions": ids.select("id", nothing, cluster="id")}
            tables["places"] = ids.select(place=address, address=address)
            for part, table in tables.items():
                path = self.folder / f"versions-{self.shards}" / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                table.write_parquet(path)
                decided[f"{part}/{name}"] = path
        return {"documents": Files(documents), "decisions": Files(decided)}

    def read(self, model: Files) -> dict[str, Files]:
        """The model as if it had been trained one pass over the plan, and that plan."""
        plan, said = (
            self.folder / f"plan-{self.shards}/out/plan/train.parquet",
            self.folder / f"reading-{self.shards}.json",
        )
        exposure = import_module("llmcore.training.exposure")
        how = {"batch": 16, "seed": 1, "steps": 0, "epochs": 1.0}
        said.write_text(json.dumps(exposure.Reading.planned(plan, how).plain()))
        return {"model": Files({**model.paths, "reading.json": said}), "plan": Files({"plan/train.parquet": plan})}

    def fetch_batches(self, tokens: Files) -> None:
        """Open the plan of these tokens as the trainer does, and read a pass of it or 2,000 batches."""
        loader, pack = import_module("llmcore.training.loader"), import_module("llmcore.tokens.pack")
        shards = {name.removeprefix("train/"): tokens.path(name) for name in tokens.names("train/")}
        windows = loader.Windows(
            self.folder / f"plan-{self.shards}/out/plan/train.parquet", shards, pack.PackParams().window, 0
        )
        for step in range(min(2000, len(windows) // 16)):
            windows[loader.windows_of_step(step, len(windows), 16, "benchmark", 1)]

    def told(self, step: str) -> dict[str, Path]:
        """The files of a step of the history, under the names that publish sees."""
        part = {"pack": (), "tokenise": ("tokens",)}.get(step, ("documents",))
        return dict(self.files(*part, under=f"{step}/").paths)

    def manifest(self, step: str) -> dict[str, Any]:
        stage, role = step.split(" ")[0], ROLES.get(step.split(" ")[0], "")
        outputs = {
            name.removeprefix(f"{step}/"): {"blob": "0" * 64, "bytes": path.stat().st_size, "rows": SHARD}
            for name, path in self.told(step).items()
        }
        if stage not in ("ingest", "tokenise"):
            outputs["dropped/none.parquet"] = {"blob": "0" * 64, "bytes": 0, "rows": 0}
        common = {"step": step, "stage": stage, "role": role, "key": f"{abs(hash(step)):064x}", "digest": "0" * 64}
        return {**common, "version": 1, "params": {}, "inputs": {}, "outputs": outputs, "metrics": {}}


ROLES = {"ingest": "ingest", "split": "split", "tokenise": "tokens", "train": "model"}
HISTORY = (
    "ingest x",
    *["extract", "clean", "language", "pii", "dedup", "quality", "decontaminate", "split", "tokenise", "train"],
)


def load(stage: str) -> tuple[Any, Any]:
    module, _, name = stage.partition(":")
    found = import_module(f"llmcore.{module}")
    return found, getattr(found, name or "STAGE")


def decisions(documents: pl.DataFrame) -> pl.DataFrame:
    """Of resolve, where nothing is a duplicate."""
    nothing = pl.lit(None, pl.String)
    return documents.select(
        "id",
        cluster="id",
        keep=pl.lit(True),
        duplicate_of=nothing,
        jaccard=pl.lit(None, pl.Float32),
        kind=nothing,
    )


# the documents


def write(folder: Path, shards: int) -> None:
    """Documents and what stages that are not asked about made of them; what lies there already stays."""
    writer = Writer(folder)
    for number in range(shards):
        if not (folder / "tokens/train" / name_of(number)).exists():
            writer.shard(number)
    writer.models()


class Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(1)
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        words = ["".join(rng.choice(letters, size)) for size in rng.integers(3, 10, WORDS)]
        frequent = list(STOP_WORDS)
        ranks = (1 / np.arange(1, WORDS + 1)).cumsum()
        drawn = np.searchsorted(ranks, rng.random((SENTENCES, 16)) * ranks[-1])
        vocabulary = [*frequent, *words]
        self.sentences = pl.Series([" ".join(vocabulary[word] for word in row).capitalize() for row in drawn.tolist()])
        self.first: dict[str, dict[str, pl.DataFrame]] = {}

    def shard(self, number: int) -> None:
        documents = self.documents(number)
        self.put("documents/kept", number, documents)
        if not self.first:
            self.first = self.derived(documents if number == 0 else self.documents(0))
        rng = np.random.default_rng([2, number])
        for part, tables in self.first.items():
            for folder, table in tables.items():
                ids = documents["id"] if "split" not in table.columns else None
                if folder in ("train", "validation", "test"):
                    ids = documents.filter(pl.col("split") == folder)["id"]
                renamed = table.with_columns(id=ids)
                drawn = [name for name in table.columns if name.startswith("band_") or name == "content"]
                other = {name: rng.integers(0, 1 << 63, table.height, dtype=np.uint64) for name in drawn}
                self.put(f"{part}/{folder}", number, renamed.with_columns(**other) if number else renamed)

    def documents(self, number: int) -> pl.DataFrame:
        rng = np.random.default_rng([1, number])
        place = rng.integers(0, SENTENCES, SHARD * SENTENCES_EACH)
        rare = pl.Series(rng.integers(0, 1 << 40, len(place)))
        marked = pl.Series(rng.random(len(place)) < 1 / 3)
        # a word that occurs once: hexadecimal digits, as names and numbers are rare
        sentences = pl.DataFrame({"text": self.sentences.gather(place), "rare": rare, "marked": marked}).select(
            document=pl.int_range(pl.len()) // SENTENCES_EACH,
            text=pl.when("marked").then(pl.format("{} x{}", "text", "rare")).otherwise("text"),
        )
        texts = sentences.group_by("document", maintain_order=True).agg(pl.col("text").str.join(". "))["text"]
        row = np.arange(SHARD)
        split = np.where(row % 100 == 0, "validation", np.where(row % 100 == 1, "test", "train"))
        halves = rng.integers(0, 1 << 63, (SHARD, 2)).tolist()
        return pl.DataFrame(
            {
                "id": [f"{left:016x}{right:016x}" for left, right in halves],
                "text": texts + ".",
                "source": "x",
                "url": [f"https://host{n % 97}.example/{number}/{n}" for n in range(SHARD)],
                "licence": "CC0-1.0",
                "fetched_at": pl.Series([None] * SHARD, dtype=pl.Datetime("us", "UTC")),
                "lang": "en",
                "lang_score": pl.Series([0.99] * SHARD, dtype=pl.Float32),
                "metadata": "{}",
                "split": split,
            }
        )

    def derived(self, documents: pl.DataFrame) -> dict[str, dict[str, pl.DataFrame]]:
        self.tokenizer(documents)
        tokenizer = Files({"tokenizer.json": self.folder / "tokenizer/tokenizer.json"})
        found = {}
        for part, stage, side in (
            ("signatures", "selection.dedup:SIGNATURES", {}),
            ("signals", "selection.signals", {}),
            ("tokens", "tokens.tokenise", {"tokenizer": tokenizer}),
        ):
            _, what = load(stage)
            found[part] = dict(what.load()(documents, what.params(), **side).outputs)
        return found

    def tokenizer(self, documents: pl.DataFrame) -> None:
        if (self.folder / "tokenizer").exists():
            return
        module = import_module("llmcore.tokens.tokenizer")
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "few.parquet"
            documents.head(2000).write_parquet(path)
            run = Run(self.folder / "tokenizer.run")
            module.train_tokenizer({"documents": Files({"kept/few.parquet": path})}, module.TokenizerParams(), run)
            run.out.rename(self.folder / "tokenizer")

    def models(self) -> None:
        """A model of one layer, and quantised, evaluation, classifier and benchmarks made over one shard."""
        if (self.folder / "benchmarks").exists():
            return
        shape = import_module("llmcore.model.transformer")
        vocabulary = json.loads((self.folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
        model = shape.Transformer(shape.ModelConfig(max(vocabulary.values()) + 1, 32, 1, 2, 1, 64, WINDOW), seed=1)
        import_module("llmcore.model.huggingface").save(model, self.folder / "model")
        corpus = Corpus(self.folder, 1)
        if not (self.folder / "plan-1").exists():
            corpus.global_job("tokens.pack", self.folder / "plan-1")()
        parts: Sequence[tuple[str, str, dict[str, Any]]] = (
            ("quantised", "release.quantise", {"tokens": 1000}),
            ("evaluation", "evaluation.stage", {"split_bytes": 1 << 16, "memorisation_prompts": 1, "sample_tokens": 1}),
            ("site_lines", "text.site_lines", {}),
            ("classifier", "selection.classifier", {}),
            ("benchmarks", "selection.decontaminate:BENCHMARKS", {}),
        )
        for part, stage, params in parts:
            if not (self.folder / part).exists():
                corpus.global_job(stage, self.folder / f"{part}.run", **params)()
                (self.folder / f"{part}.run" / "out").rename(self.folder / part)

    def put(self, part: str, number: int, table: pl.DataFrame) -> None:
        path = self.folder / part / name_of(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(path, compression="zstd", compression_level=1, row_group_size=8192)


def name_of(number: int) -> str:
    return f"g000-x-{number:05d}.parquet"


# memory


def held(mark: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    found = re.search(rf"{mark}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 if found else 0


def resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def family(process: int) -> list[int]:
    """A process and everything that it started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(one for child in children for one in family(int(child)))]


if __name__ == "__main__":
    main()
