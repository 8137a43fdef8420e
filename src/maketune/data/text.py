"""Plain text: a document per line, paragraph or file (data.sample_by)."""

from collections.abc import Iterator

from maketune.data.lines import texts
from maketune.data.problems import Reading
from maketune_common.errors import UserError


def read_txt(reading: Reading) -> Iterator[str]:
    """The documents of a .txt file."""
    if reading.data.template is not None:
        raise UserError(f"{reading.name}: a .txt file has no columns for data.template", "remove data.template")
    by = {"line": _by_line, "paragraph": _by_paragraph, "document": _by_document}
    return by[reading.data.sample_by](reading)


def _by_line(reading: Reading) -> Iterator[str]:
    for first, text, damaged in texts(reading, can_skip=True):
        for number, line in enumerate(text.removesuffix("\n").split("\n"), first):
            if (not damaged or reading.undamaged(line, number)) and reading.accepts(line, number):
                yield line


def _by_paragraph(reading: Reading) -> Iterator[str]:
    """Paragraphs end at a line that is empty or white space."""
    paragraph: list[str] = []
    start = size = 0
    any_damage = False

    def complete() -> Iterator[str]:
        text = "\n".join(paragraph)
        paragraph.clear()
        if (not any_damage or reading.undamaged(text, start)) and reading.accepts(text, start):
            yield text

    for first, text, damaged in texts(reading):
        any_damage |= damaged
        for number, line in enumerate(text.removesuffix("\n").split("\n"), first):
            if line and not line.isspace():
                if not paragraph:
                    start, size = number, 0
                paragraph.append(line)
                size += len(line)
                if size > reading.data.max_document_bytes:
                    reading.too_long(reading.place(start), size, paragraph[0], can_skip=False)
            elif paragraph:
                yield from complete()
    if paragraph:
        yield from complete()


def _by_document(reading: Reading) -> Iterator[str]:
    parts: list[str] = []
    size, any_damage = 0, False
    for _, text, damaged in texts(reading):
        parts.append(text)
        size, any_damage = size + len(text), any_damage or damaged
        if size > reading.data.max_document_bytes:
            reading.too_long(reading.place(1), size, parts[0][:200])
            return
    document = "".join(parts).removesuffix("\n")
    if (not any_damage or reading.undamaged(document, 1)) and reading.accepts(document, 1):
        yield document
