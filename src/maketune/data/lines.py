"""A file in blocks of whole lines, as bytes or as text; bytes that are not text are named with their place."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maketune.data.archives import opened
from maketune.data.problems import SKIP, Reading, position, shorten
from maketune_common.errors import UserError

CHUNK = 2**20
BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(rb"\r\n|\r|\n")
LINE_ENDS = {"crlf": re.compile(rb"\r\n"), "lone_cr": re.compile(rb"\r(?!\n)")}


@dataclass
class Block:
    """Whole lines of a file: `offset` of its first byte in the file, `line` number of its first line."""

    offset: int
    line: int
    raw: bytes
    content: bytes
    """`raw` with every line end as `\\n`."""


def blocks(reading: Reading, can_skip: bool = False) -> Iterator[Block]:
    """The file in blocks. A line beyond the limit raises UserError, or is left out as on_error and `can_skip` say."""
    offset, line, skipping = 0, 1, False
    pending: list[bytes] = []
    with opened(reading.path) as file:
        while True:
            chunk = file.read(CHUNK)
            while chunk.endswith(b"\r") and (more := file.read(1)):  # keep \r\n together
                chunk += more
            if offset == 0 and not pending and chunk.startswith(BOM):
                reading.problems.note("bom", reading.place(1))
                chunk, offset = chunk[len(BOM) :], len(BOM)
                if not chunk:
                    continue
            cut = (chunk.rfind(b"\n") + 1 or chunk.rfind(b"\r") + 1) if chunk else 0
            if chunk and not cut:
                pending.append(chunk)
                size = sum(map(len, pending))
                if size > reading.data.max_document_bytes:
                    if not skipping:
                        start = pending[0][:200].decode("utf-8", "backslashreplace")
                        reading.too_long(reading.place(line), size, start, can_skip)
                    offset, pending, skipping = offset + size, [], True
                continue
            raw = b"".join([*pending, chunk[:cut]])
            pending = [chunk[cut:]] if chunk[cut:] else []
            if skipping:
                end = LINE_END.search(raw)
                size = end.end() if end else len(raw)
                offset, line, raw, skipping = offset + size, line + 1, raw[size:], False
            if raw:
                block = Block(offset, line, raw, _with_newlines(reading, line, raw))
                yield block
                offset, line = offset + len(raw), line + block.content.count(b"\n")
            if not chunk:
                return


def texts(reading: Reading, can_skip: bool = False) -> Iterator[tuple[int, str, bool]]:
    """Of each block: the number of its first line, its text, and whether there is DAMAGE in it (on_error: skip).

    Raises UserError for a NUL, and for bytes that are not UTF-8 unless on_error skips or replaces them.
    """
    on_error = reading.data.on_error
    for block in blocks(reading, can_skip):
        damaged = b"\0" in block.content
        try:
            text = block.content.decode()
        except UnicodeDecodeError as error:
            if on_error == "fail":
                raise not_utf8(reading, block) from error
            text = block.content.decode("utf-8", "surrogateescape")
            if on_error == "replace":
                text = _replaced(reading, block.line, text)
            else:
                damaged = True
        if damaged and on_error != "skip":
            raise _holds_nul(reading, block)
        yield block.line, text, damaged


def not_utf8(reading: Reading, block: Block) -> UserError:
    """The error that names the first byte of a block that is not UTF-8."""
    try:
        block.raw.decode()
    except UnicodeDecodeError as error:
        at = error.start
    byte_order_mark = block.offset == 0 and block.raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    encoding = "UTF-16" if byte_order_mark else "WINDOWS-1252"
    hint = f"convert the file: {_convert(reading.path, encoding)}; or ARGS=data.on_error=replace (or skip)"
    return _bad_byte(reading, block, at, f"byte 0x{block.raw[at]:02x} is not UTF-8", hint)


def _holds_nul(reading: Reading, block: Block) -> UserError:
    hint = "NUL bytes do not occur in text: is this a binary or UTF-16 file?"
    start = block.raw[:200]
    if start.count(b"\0") * 3 > len(start):
        encoding = "UTF-16BE" if start[0] == 0 else "UTF-16LE"
        hint = f"this looks like UTF-16; convert the file: {_convert(reading.path, encoding)}"
    return _bad_byte(reading, block, block.raw.index(b"\0"), "a NUL byte", f"{hint}; or {SKIP}")


def _bad_byte(reading: Reading, block: Block, at: int, message: str, hint: str) -> UserError:
    ends = [end.end() for end in LINE_END.finditer(block.raw, 0, at)]
    start = ends[-1] if ends else 0
    row = LINE_END.split(block.raw[start : at + 200], maxsplit=1)[0].decode("utf-8", "backslashreplace")
    place = reading.place(block.line + len(ends), len(block.raw[start:at].decode("utf-8", "replace")) + 1)
    return UserError(f"{place}: {message} (byte {block.offset + at:,} of the file), in {shorten(row)}", hint)


def _convert(path: str, encoding: str) -> str:
    name = Path(path).name
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {shlex.quote('utf8-' + name)}"


def _with_newlines(reading: Reading, line: int, raw: bytes) -> bytes:
    """The block with `\\n` for every line end; others are counted as problems."""
    if b"\r" not in raw:
        return raw
    for kind, pattern in LINE_ENDS.items():
        if first := pattern.search(raw):
            above = len(LINE_END.findall(raw[: first.start()]))
            reading.problems.note(kind, reading.place(line + above), count=len(pattern.findall(raw)))
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _replaced(reading: Reading, line: int, text: str) -> str:
    """The text with U+FFFD for each run of bytes that are not UTF-8."""

    def replace(run: re.Match[str]) -> str:
        above, column, row = position(text, run.start())
        reading.problems.note("replaced", reading.place(line + above, column), shorten(row))
        return "\ufffd"

    return re.sub("[\udc80-\udcff]+", replace, text)
