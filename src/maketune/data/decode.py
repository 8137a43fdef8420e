"""Bytes of a file, out of its archive, in blocks of whole lines; and those as text. Damage is named with its place."""

import _compression
import bz2
import contextlib
import gzip
import io
import lzma
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from maketune.core.config import DataConfig
from maketune.data.problems import Problems, shorten
from maketune.data.sources import shown
from maketune_common.errors import UserError

CHUNK = 2**20


def _strictly(decompressor: Callable[[], Any]) -> Callable[[str, str], BinaryIO]:
    """An opener for which all of a file must be streams: Python's own take a damaged later one for garbage."""

    def opener(path: str, mode: str) -> BinaryIO:
        return io.BufferedReader(_compression.DecompressReader(open(path, mode), decompressor, trailing_error=()))

    return opener


OPENERS = {".gz": gzip.open, ".bz2": _strictly(bz2.BZ2Decompressor), ".xz": _strictly(lzma.LZMADecompressor)}
DAMAGE = re.compile("[\0\udc80-\udcff]+")
"""NUL, and the bytes that are no UTF-8 as `surrogateescape` leaves them."""
LINE_END = re.compile(rb"\r\n|\r|\n")
SKIP = 'ARGS="data.on_error=skip" leaves such documents out'


@dataclass
class Reading:
    """One file being read: how, and where what is wrong with it goes."""

    path: str
    data: DataConfig
    problems: Problems

    def place(self, line: int, column: int = 1) -> str:
        """`file:line:column`, counted from 1; columns in characters."""
        return f"{shown(self.path)}:{line}:{column}"

    def bad(self, kind: str, place: str, message: str, hint: str, row: object = "") -> None:
        """Note what cannot be used with on_error: skip. Raises UserError otherwise."""
        row = row if row == "" else shorten(row)
        if self.data.on_error != "skip":
            raise UserError(f"{place}: {message}" + (f", in {row}" if row else ""), f"{hint}; or {SKIP}")
        self.problems.note(kind, place, str(row))

    def too_long(self, place: str, size: int, row: object = "", skip: bool = True) -> None:
        """Note a document beyond the limit. Raises UserError unless it may be, and is to be, left out."""
        message = f"a document or row of at least {size:,} bytes, beyond data.max_document_bytes"
        hint = f'break it up, or raise the limit: ARGS="data.max_document_bytes={1 << size.bit_length()}"'
        if not skip:
            raise UserError(f"{place}: {message}", hint)
        self.bad("too_long", place, message, hint, row)

    def keep(self, text: str, line: int, place: str = "") -> bool:
        """Whether a document can be used: not empty, not too long. Notes it if not."""
        limit = self.data.max_document_bytes
        if not text or text.isspace():
            self.problems.note("empty", place or self.place(line))
        elif len(text) * 4 > limit and (size := len(text.encode("utf-8", "replace"))) > limit:
            self.too_long(place or self.place(line), size, text)
        else:
            return True
        return False

    def whole(self, text: str, line: int) -> bool:
        """Whether a text that begins at `line` has no damage. Notes it if it has."""
        if not (found := DAMAGE.search(text)):
            return True
        before = text[: found.start()]
        place = self.place(line + before.count("\n"), len(before) - before.rfind("\n"))
        row = text[before.rfind("\n") + 1 :].partition("\n")[0]
        self.bad("nul" if found[0][0] == "\0" else "invalid_utf8", place, "is damaged", "mend it", row)
        return False


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file's content, out of its archive. Raises UserError where the archive is cut off or damaged."""
    ending = Path(path).suffix.lower()
    try:
        if ending == ".zst":  # not zstandard's reader, which takes a truncated file for a whole one
            import pyarrow as pa

            with pa.OSFile(path) as file, pa.CompressedInputStream(file, "zstd") as stream:
                yield stream
        else:
            with OPENERS.get(ending, open)(path, "rb") as stream:
                yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError) as error:
        if ending not in (*OPENERS, ".zst") or getattr(error, "errno", None) is not None:
            raise
        cut = isinstance(error, EOFError) or "runcated" in str(error)
        what = "the archive is cut off" if cut else f"the archive is damaged ({error})"
        test = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}[ending]
        raise UserError(f"{path}: {what}", f"fetch or make it anew; `{test} -t {shlex.quote(path)}` tests it") from None


@dataclass
class Block:
    """Whole lines of a file: `offset` of its first byte in the file, `line` number of its first line."""

    offset: int
    line: int
    raw: bytes
    content: bytes
    """`raw` with every line end made `\\n`."""


def blocks(reading: Reading, skip: bool = False) -> Iterator[Block]:
    """The file in blocks of whole lines. A line beyond the limit is an error; `skip`: or left out, as on_error says."""
    offset, line, pending, skipping = 0, 1, [], False
    with opened(reading.path) as file:
        while True:
            chunk = file.read(CHUNK)
            while chunk.endswith(b"\r") and (more := file.read(1)):  # no line end is torn
                chunk += more
            if offset == 0 and not pending and chunk.startswith(b"\xef\xbb\xbf"):
                reading.problems.note("bom", reading.place(1))
                chunk, offset = chunk[3:], 3
                if not chunk:
                    continue
            cut = (chunk.rfind(b"\n") + 1 or chunk.rfind(b"\r") + 1) if chunk else 0
            if chunk and not cut:
                pending.append(chunk)
                size = sum(map(len, pending))
                if size > reading.data.max_document_bytes:
                    if not skipping:
                        start = pending[0][:200].decode("utf-8", "backslashreplace")
                        reading.too_long(reading.place(line), size, start, skip)
                    offset, pending, skipping = offset + size, [], True
                continue
            raw = b"".join([*pending, chunk[:cut]])
            pending = [chunk[cut:]] if chunk[cut:] else []
            if skipping:
                end = LINE_END.search(raw)
                size = end.end() if end else len(raw)
                offset, line, raw, skipping = offset + size, line + 1, raw[size:], False
            if raw:
                block = Block(offset, line, raw, _line_ends(reading, line, raw))
                yield block
                offset, line = offset + len(raw), line + block.content.count(b"\n")
            if not chunk:
                return


def _line_ends(reading: Reading, line: int, raw: bytes) -> bytes:
    """The block with `\\n` for every line end; others are noted."""
    if b"\r" not in raw:
        return raw
    both = raw.count(b"\r\n")
    for kind, count, end in (("crlf", both, rb"\r\n"), ("lone_cr", raw.count(b"\r") - both, rb"\r(?!\n)")):
        if count:
            before = raw[: re.search(end, raw).start()]
            reading.problems.note(kind, reading.place(line + len(LINE_END.findall(before))), count=count)
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def texts(reading: Reading, skip: bool = False) -> Iterator[tuple[int, str, bool]]:
    """Number of its first line, text, and whether DAMAGE is in it, for each block of a file."""
    for block in blocks(reading, skip):
        damaged = b"\0" in block.content
        try:
            text = block.content.decode()
        except UnicodeDecodeError:
            text, damaged = _mended(reading, block, damaged)
        if damaged and reading.data.on_error != "skip":
            refuse_nul(reading, block)
        yield block.line, text, damaged


def _mended(reading: Reading, block: Block, damaged: bool) -> tuple[str, bool]:
    """The text with what is no UTF-8 escaped (on_error: skip) or replaced."""
    if reading.data.on_error == "fail":
        refuse_bytes(reading, block)
    text = block.content.decode("utf-8", "surrogateescape")
    if reading.data.on_error == "skip":
        return text, True

    def replaced(found: re.Match) -> str:
        before = text[: found.start()]
        place = reading.place(block.line + before.count("\n"), len(before) - before.rfind("\n"))
        reading.problems.note("replaced", place, shorten(text[before.rfind("\n") + 1 :].partition("\n")[0]))
        return "\ufffd"

    return re.sub("[\udc80-\udcff]+", replaced, text), damaged


def refuse_bytes(reading: Reading, block: Block) -> None:
    """Raise UserError for the block's first byte that is no UTF-8, if there is one."""
    try:
        block.raw.decode()
    except UnicodeDecodeError as error:
        at, byte = error.start, block.raw[error.start]
    else:
        return
    line, column, row = _where(block, at)
    wide = block.offset == 0 and block.raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    place = f"byte {block.offset + at:,} of the file"
    raise UserError(
        f"{reading.place(line, column)}: byte 0x{byte:02x} is not UTF-8 ({place}), in {row}",
        f"convert the file, as in: {_convert(reading.path, 'UTF-16' if wide else 'WINDOWS-1252')}; "
        "or ARGS=data.on_error=replace (or skip)",
    )


def refuse_nul(reading: Reading, block: Block) -> None:
    """Raise UserError for the block's first NUL, if there is one."""
    at = block.raw.find(b"\0")
    if at < 0:
        return
    line, column, row = _where(block, at)
    wide = block.raw[:200].count(b"\0") * 3 > len(block.raw[:200])
    hint = "a NUL is no text: is this a text file?"
    if wide:
        kind = "UTF-16BE" if block.raw[0] == 0 else "UTF-16LE"
        hint = f"this looks like UTF-16; convert it: {_convert(reading.path, kind)}"
    raise UserError(
        f"{reading.place(line, column)}: a NUL byte (byte {block.offset + at:,} of the file), in {row}",
        f"{hint}; or {SKIP}",
    )


def _where(block: Block, at: int) -> tuple[int, int, str]:
    """Line and column of a byte of the block's, and its row, shortened."""
    ends = [end.end() for end in LINE_END.finditer(block.raw, 0, at)]
    start = ends[-1] if ends else 0
    row = LINE_END.split(block.raw[start : at + 200], maxsplit=1)[0].decode("utf-8", "backslashreplace")
    return block.line + len(ends), len(block.raw[start:at].decode("utf-8", "replace")) + 1, shorten(row)


def _convert(path: str, encoding: str) -> str:
    name = Path(path).name
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {shlex.quote('utf8-' + name)}"


def lines(text: str) -> list[str]:
    """The lines of a block, without their ends."""
    found = text.split("\n")
    if not found[-1]:
        found.pop()
    return found
