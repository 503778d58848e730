"""Compressed files as streams that hold little in memory, whatever they unpack to.

Whoever reads says how much he wants at most: a few kilobytes of zeros may stand for gigabytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

XZ_BYTES = 256 * 1024 * 1024  # of memory for its dictionary; `xz -9` needs 65 MiB, a crafted file may ask for 4 GiB
PIECE_BYTES = 1 << 16


def opened(path: Path) -> IO[bytes]:
    """A possibly compressed file as a binary stream."""
    return unpacked(path.open("rb"))


def unpacked(file: IO[bytes]) -> IO[bytes]:
    """The stream behind gzip, xz, bzip2 or zstd, told by the first bytes, not by a name."""
    magic = file.read(6)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.open(file))
    if magic == b"\xfd7zXZ\x00":
        return cast(IO[bytes], io.BufferedReader(_Xz(file)))
    if magic[:3] == b"BZh":
        return cast(IO[bytes], bz2.open(file))
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return cast(IO[bytes], io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))))
    return file


def is_damage(error: Exception) -> bool:
    """Is it the bytes that are wrong, or the machine (a disk that cannot be read, too little memory)?"""
    if isinstance(error, OSError):
        return error.errno is None
    return isinstance(error, (EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError))


def said(error: BaseException) -> str:
    """The first line of an error's message, which a table can hold."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def lines_of(file: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """The lines of a stream; None for one of more than `limit` bytes, which is passed over in pieces."""
    while line := file.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(PIECE_BYTES)
        yield None


class _Xz(io.RawIOBase):
    """xz with a limit on memory, which lzma.open has not; streams that follow one another are one (as in xz itself)."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.machine = file, self._next()
        self.waiting, self.begun = b"", False

    def _next(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of the buffer; 0 at the end. Raises EOFError for a file that is cut off, LZMAError for damage."""
        while len(buffer):
            if self.machine.eof:
                self.waiting, self.machine, self.begun = self.machine.unused_data, self._next(), False
            if not self.waiting and self.machine.needs_input:
                self.waiting = self.file.read(PIECE_BYTES)
            if not self.begun:
                self.waiting = self.waiting.lstrip(b"\0")  # padding between streams
                if not self.waiting:
                    self.waiting = self.file.read(PIECE_BYTES).lstrip(b"\0")
            if not self.waiting and self.machine.needs_input:
                if self.begun:
                    raise EOFError("the file ends before the end of its stream")
                return 0
            self.begun = True
            found = self.machine.decompress(self.waiting, len(buffer))
            self.waiting = b""
            if found:
                buffer[: len(found)] = found
                return len(found)
        return 0
