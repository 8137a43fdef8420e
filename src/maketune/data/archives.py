"""Open a file, compressed or not; a truncated or damaged archive is an error."""

import _compression
import bz2
import contextlib
import gzip
import io
import lzma
import os
import shlex
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from maketune.data import store
from maketune_common.errors import UserError

TESTERS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Endings of archives, and the program that tests each."""
ARCHIVES = tuple(TESTERS)
STRICT: dict[str, Any] = {".bz2": bz2.BZ2Decompressor, ".xz": lzma.LZMADecompressor}
"""Read here with an error for a damaged later stream: bz2.open and lzma.open take it for garbage after the archive."""


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The decompressed content. Raises UserError where the archive is truncated or damaged."""
    ending = Path(path).suffix.lower()
    try:
        with _open(path, ending) as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError) as error:
        if ending not in ARCHIVES or getattr(error, "errno", None) is not None:
            raise
        truncated = isinstance(error, EOFError) or "runcated" in str(error)
        message = "the archive is truncated" if truncated else f"the archive is damaged ({error})"
        test = f"`{TESTERS[ending]} -t {shlex.quote(path)}` tests it"
        raise UserError(f"{path}: {message}", f"download or create it again; {test}") from None


@contextlib.contextmanager
def seekable(path: str) -> Iterator[str]:
    """A path to the decompressed content, for formats that are read from their end."""
    if not path.lower().endswith(ARCHIVES):
        yield path
        return
    with store.build_folder() as folder, opened(path) as content:
        copy = os.path.join(folder, "decompressed")
        with open(copy, "wb") as file:
            shutil.copyfileobj(content, file, 2**20)
        yield copy


@contextlib.contextmanager
def _open(path: str, ending: str) -> Iterator[Any]:
    if ending == ".zst":  # not zstandard's reader, which takes a truncated file for a complete one
        import pyarrow as pa

        with pa.OSFile(path) as file, pa.CompressedInputStream(file, "zstd") as stream:
            yield stream
        return
    with open(path, "rb") as file:
        if ending in STRICT:
            yield io.BufferedReader(_compression.DecompressReader(file, STRICT[ending], trailing_error=()))
        else:
            yield gzip.GzipFile(fileobj=file) if ending == ".gz" else file
