"""What lies in files and folders, as sources: kinds by suffix and content, text and languages by a sample.

A sample goes through the very stages that the chain begins with (ingest, extract, clean, language), so what it yields
is what they will yield.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import polars as pl

from llmcore.artifacts.stage import ShardResult
from llmcore.errors import LlmcoreError, UsageError
from llmcore.planning.extent import COMPRESSED, YIELD
from llmcore.planning.kinds import CONVERSIONS, advice
from llmcore.planning.licences import is_licence, licence_in
from llmcore.schema import DOCUMENT_SCHEMA
from llmcore.sources import collect, ingest
from llmcore.text import clean, extract, language

SAMPLE_FILES = 60
SAMPLE_DOCUMENTS = 300
FILE_BYTES = 200_000  # of one text or page in the sample
ROWS_BYTES = 4_000_000  # of a file of rows
LATER_FILTERS = 0.85  # of the cleaned text that deduplication and the quality rules leave, on the bundled corpus
# readable, and no prose: what a web site or a program is made of
_NO_PROSE = "css js map json xml svg yaml yml toml ini cfg lock sh bat c h cpp hpp java py rb go rs ts sql po pot mk"
NO_PROSE = frozenset(re.findall(r"\w+", _NO_PROSE))
TEXT_COLUMNS = ("text", "content", "body", "document", "article")
URL_COLUMNS = ("url", "uri", "link", "source_url", "address")


@dataclass(frozen=True)
class Found:
    """A source to be. path: as the configuration names it; bytes: on disk; text: UTF-8 bytes of it after all filters,
    likely; documents: their likely number; languages: code -> share of the text, largest first; longest: bytes of the
    largest file; p75: bytes of text that three of four documents stay below; licence_file: what says the licence.
    """

    name: str
    kind: str
    path: str
    licence: str
    licence_file: Path | None
    files: int
    bytes: int
    text: float
    documents: int
    languages: Mapping[str, float]
    longest: int = 0
    p75: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """Files that no source reads, and what could be done about it."""

    what: str
    files: int
    advice: str


def look(paths: Sequence[str]) -> tuple[list[Found], list[Left]]:
    """The sources that lie at these paths, and what is left out. Raises UsageError where nothing is to be read."""
    found: list[Found] = []
    left: list[Left] = []
    for asked in paths:
        if re.match(r"^[a-z0-9]+://", asked):
            raise UsageError(f"{asked}: init looks at this machine's files; docs/configuration.md says how to write it")
        path = Path(asked).expanduser().absolute()
        if not path.exists():
            raise UsageError(f"{asked}: no such file or folder")
        for kind, place, files in _groups(path, left):
            found.append(_found(path, kind, place, files, [source.name for source in found]))
    if not found:
        instead = "; ".join(f"{one.files} of {one.what}: {one.advice}" for one in left)
        raise UsageError(
            f"{', '.join(paths)}: nothing that can be read{f' ({instead})' if instead else ''}; there are "
            f"sources of {', '.join(collect.SUFFIXES)}"
        )
    return found, left


def _groups(path: Path, left: list[Left]) -> Iterator[tuple[str, str, list[Path]]]:
    """(kind, path for the configuration, files) of everything of one kind."""
    if path.is_file():
        kind = _kind(path)
        if kind in collect.SUFFIXES:
            yield kind, str(path), [path]
        else:
            left.append(Left(path.name, 1, advice(_suffix(path), list(collect.SUFFIXES)) or "no text"))
        return
    by_kind: dict[str, list[Path]] = {}
    by_suffix: dict[str, list[Path]] = {}
    for file in _files(path):
        known = next((kind for kind in collect.SUFFIXES if collect.fits(kind, file.name)), "")
        if known:
            by_kind.setdefault(known, []).append(file)
        elif not is_licence(file.name):
            by_suffix.setdefault(_suffix(file), []).append(file)
    for kind, files in by_kind.items():
        yield kind, str(path), files
    for suffix, files in sorted(by_suffix.items()):
        kinds = {_kind(file) for file in files[:5]}
        (kind, *more) = kinds
        readable = kind in collect.SUFFIXES and not more and suffix not in NO_PROSE and suffix not in CONVERSIONS
        if readable and suffix:
            yield kind, f"{path}/**/*.{suffix}", files
        elif readable and not by_kind and len(by_suffix) == 1:
            yield kind, f"{path}/**/*", files
        else:
            left.append(Left(f".{suffix}" if suffix else "no suffix", len(files), _instead(suffix, readable)))


def _instead(suffix: str, readable: bool) -> str:
    if readable:
        return "text by its content; give the files a suffix such as .txt"
    if suffix in CONVERSIONS:
        return advice(suffix, [])
    return "not prose" if suffix in NO_PROSE else "not text"


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order, but for what is hidden."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and (Path(place) / name).is_file():
                yield Path(place) / name


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for compression in collect.COMPRESSIONS:
        name = name.removesuffix(compression)
    return name.rpartition(".")[2] if "." in name else ""


def _kind(path: Path) -> str:
    """The kind of a file: by its suffix, else by how it begins; "" for what is no text."""
    for kind in collect.SUFFIXES:
        if collect.fits(kind, path.name):
            return kind
    if _suffix(path) in CONVERSIONS:
        return ""
    begins = beginning(path, 4096)
    if begins.startswith(b"PAR1"):
        return "parquet"
    if begins.startswith(b"WARC/"):
        return "warc"
    if b"\0" in begins or not begins.strip():
        return ""
    try:
        text = begins[:4000].decode("utf-8", "strict" if len(begins) < 4000 else "ignore").lstrip().lower()
    except UnicodeDecodeError:
        text = begins.decode("latin-1").lower()
        if sum(character.isalpha() or character.isspace() for character in text) < 0.8 * len(text):
            return ""
    if text.startswith(("<!doctype html", "<html")):
        return "html"
    return "jsonl" if re.match(r"\{.*\}\s*\n\s*\{", text.split("\n\n")[0], re.DOTALL) else "text"


def beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file, or of what is compressed in it; b"" for what cannot be read."""
    try:
        with _opened(path) as file:
            return file.read(size)
    except (OSError, EOFError, lzma.LZMAError, ValueError):
        return b""


def _opened(path: Path) -> IO[bytes]:
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener = openers.get(path.suffix.lower())
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return pa.input_stream(str(path), compression="zstd")
    return opener(path, "rb") if opener else path.open("rb")


def _found(asked: Path, kind: str, place: str, files: Sequence[Path], taken: Sequence[str]) -> Found:
    folder = asked if asked.is_dir() else asked.resolve().parent
    licence, licence_file = licence_in(folder)
    sizes = [file.stat().st_size for file in files]
    name = _name(asked, kind, taken)
    columns = _columns(kind, files[0])
    with tempfile.TemporaryDirectory(prefix="llmcore-look-") as temporary:
        sample, read = _sample(kind, files, Path(temporary), columns)
    lengths = sample["text"].str.len_bytes().sort() if sample.height else pl.Series("text", [0])
    share = float(lengths.sum()) / read if read else YIELD[kind][1] * (COMPRESSED[1] if _packed(kind, files[0]) else 1)
    text = sum(sizes) * share * LATER_FILTERS
    rows = max(1, round(text / max(1.0, float(lengths.mean() or 1))))  # type: ignore[arg-type]
    return Found(
        name=name,
        kind=kind,
        path=place,
        licence=licence,
        licence_file=licence_file,
        files=len(files),
        bytes=sum(sizes),
        text=text,
        documents=len(files) if kind in ("text", "html") else rows,
        languages=_languages(sample),
        longest=max(sizes) if kind in ("text", "html") else lengths.to_list()[-1],
        p75=round(lengths.quantile(0.75) or 0),
        columns=columns,
    )


def _name(path: Path, kind: str, taken: Sequence[str]) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", path.resolve().name.lower().split(".")[0]).strip("_")[:32] or kind
    numbered = (f"{plain}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain((plain, f"{plain}_{kind}"), numbered) if name not in taken)


def _packed(kind: str, path: Path) -> bool:
    return kind not in ("warc", "parquet") and path.suffix.lower() in collect.COMPRESSIONS


def _columns(kind: str, path: Path) -> dict[str, Any]:
    """The keys of a source of rows: which column holds the text, and whether as HTML; which the address."""
    if kind not in ("parquet", "jsonl"):
        return {}
    head = _rows(kind, path, 50)
    texts = [name for name, dtype in head.schema.items() if dtype == pl.String]
    if not texts:
        raise UsageError(f"{path}: no column of text; there are {', '.join(head.columns)}")
    named = [name for name in TEXT_COLUMNS if name in texts]
    longest = max(texts, key=lambda name: head[name].str.len_chars().mean() or 0)
    text = named[0] if named else longest
    addresses = [name for name in texts if name.lower() in URL_COLUMNS and name != text]
    columns: dict[str, Any] = {"text_column": text} if text != "text" else {}
    if addresses and addresses[0] != "url":
        columns["url_column"] = addresses[0]
    begins = head[text].drop_nulls().str.strip_chars().str.slice(0, 20).str.to_lowercase()
    if len(begins) and begins.str.contains(r"^<(?:!doctype html|html|body|div|p)\b").mean() > 0.5:  # type: ignore[operator]
        columns["html_column"] = True
    return columns


def _rows(kind: str, path: Path, count: int) -> pl.DataFrame:
    try:
        if kind == "parquet":
            return pl.read_parquet(path, n_rows=count)
        lines = beginning(path, ROWS_BYTES).rpartition(b"\n")[0].split(b"\n")[:count]
        return pl.read_ndjson(b"\n".join(lines), infer_schema_length=count, ignore_errors=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{path}: not readable as {kind} ({str(error).splitlines()[0]})") from error


def _sample(kind: str, files: Sequence[Path], folder: Path, columns: Mapping[str, Any]) -> tuple[pl.DataFrame, float]:
    """Cleaned documents of the sample, and how many stored bytes they come from (0: nobody can tell)."""
    raw, read = _raw(kind, files, folder)
    given = {"text_column": "text", **columns}
    params = ingest.IngestParams(source="sample", kind=kind, **given)
    texts: list[tuple[str, str]] = []
    try:
        for one in itertools.islice(ingest.candidates(raw, params, raw.name), SAMPLE_DOCUMENTS):
            if not getattr(one, "refused", None) and getattr(one, "text", "").strip():
                texts.append((one.text, str(one.metadata.get("content_type", "text/plain"))))
    except LlmcoreError:
        pass  # a damaged end says nothing of what was read before it; the run will name it
    documents = pl.DataFrame(
        [
            {**dict.fromkeys(DOCUMENT_SCHEMA), "id": f"{number:032x}", "source": "sample", "licence": "unknown"}
            | {"text": ingest.sound_text(text), "metadata": f'{{"content_type": "{content_type}"}}'}
            for number, (text, content_type) in enumerate(texts)
        ],
        schema=DOCUMENT_SCHEMA,
    )
    extracted = _kept(extract.extract(documents, extract.ExtractParams()))
    return _kept(clean.clean(extracted, clean.CleanParams())), read


def _kept(made: ShardResult) -> pl.DataFrame:
    kept = made.outputs["kept"]
    return kept if isinstance(kept, pl.DataFrame) else pl.concat(kept)


def _raw(kind: str, files: Sequence[Path], folder: Path) -> tuple[Path, float]:
    """A raw file of the sample as the stages read it, and the stored bytes that it stands for."""
    if kind == "warc":
        return files[0], 0.0
    if kind in ("text", "html"):
        step = max(1, len(files) // SAMPLE_FILES)
        chosen = files[::step][:SAMPLE_FILES]
        contents = [beginning(file, FILE_BYTES) for file in chosen]
        whole = [min(1.0, len(content) / _held(file)) for file, content in zip(chosen, contents, strict=True)]
        path = folder / "sample.parquet"
        names = [f"{number}.{kind}" for number in range(len(chosen))]
        pl.DataFrame({"name": names, "content": contents}).write_parquet(path)
        return path, sum(file.stat().st_size * share for file, share in zip(chosen, whole, strict=True))
    if kind == "parquet":
        rows = _rows(kind, files[0], SAMPLE_DOCUMENTS)
        path = folder / "sample.parquet"
        rows.write_parquet(path)
        total = pl.scan_parquet(files[0]).select(pl.len()).collect().item()
        return path, files[0].stat().st_size * rows.height / max(1, total)
    path = folder / "sample.jsonl"
    lines = beginning(files[0], ROWS_BYTES).rpartition(b"\n")[0].split(b"\n")[:SAMPLE_DOCUMENTS]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, path.stat().st_size / (COMPRESSED[1] if _packed(kind, files[0]) else 1.0)


def _held(path: Path) -> float:
    """Bytes that a file holds, as far as its size says."""
    return max(1.0, path.stat().st_size * (COMPRESSED[1] if path.suffix.lower() in collect.COMPRESSIONS else 1.0))


def _languages(sample: pl.DataFrame) -> dict[str, float]:
    if not sample.height:
        return {}
    labels, _ = language.identify(sample["text"])
    sizes = pl.DataFrame({"lang": labels, "size": sample["text"].str.len_bytes()}).drop_nulls()
    total = sizes["size"].sum() or 1
    shares = sizes.group_by("lang").agg(pl.col("size").sum() / total).sort("size", "lang", descending=[True, False])
    return dict(shares.iter_rows())
