"""Inputs that cannot be used: each is named with its place and what to do, and leaves nothing behind."""

# ruff: noqa: E501 one case per line
import bz2
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from maketune.core.config import DataConfig
from maketune.data import corpus
from maketune.data import step as data
from maketune.data.problems import Problems
from maketune_common.errors import UserError
from support import workspace

MANY = "\n".join(f"a line of text, number {i}" for i in range(5000)).encode()
SKIP = "data.on_error=skip"


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def arrow(table):
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


BROKEN = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"okx\xff")]
)

BAD = [  # file, content, what the message holds, what the hint holds, settings
    ("a.txt", b"good\nbad \xff\n", "{}:2:5: byte 0xff is not UTF-8 (byte 9 of the file), in 'bad ", "iconv -f WINDOWS", ()),
    ("a.txt", b"good\r\nbad \xff", "{}:2:5: byte 0xff is not UTF-8 (byte 10 of the file)", "on_error=replace", ()),
    ("a.txt", b"\xef\xbb\xbfx\xe9y\n", "{}:1:2: byte 0xe9 is not UTF-8 (byte 4 of the file)", "iconv", ()),
    ("a.txt", "é".encode() * 3 + b"\xc3", "{}:1:4: byte 0xc3", "iconv", ()),
    ("a.txt", "x".encode("utf-16"), "{}:1:1: byte 0xff is not UTF-8", "iconv -f UTF-16", ()),
    ("a.txt", "plain text".encode("utf-16-le"), "{}:1:2: a NUL byte (byte 1 of the file), in 'p\\x00l", "iconv -f UTF-16LE", ()),
    ("a.txt", "plain text".encode("utf-16-be"), "{}:1:1: a NUL byte (byte 0", "iconv -f UTF-16BE", ()),
    ("a.txt", b"fine\nthis one is n\0t\n", "{}:2:14: a NUL byte (byte 18 of the file)", "on_error=skip", ()),
    ("a.txt", b"one\nn\0\n", "{}:2:2: a NUL byte", "binary", ("data.on_error=replace",)),
    ("a.txt", b"one\n\x1b[31m\xff" + b"y" * 90, "'\\x1b[31m\\\\xff" + "y" * 51 + "'...", "iconv", ()),
    ("a.txt", b"x" * 300, "{}:1:1: a document or row of at least 300 bytes", "max_document_bytes=512", ("data.max_document_bytes=100",)),
    ("a.txt", b"a\nb\n" * 60, "{}:1:1: a document or row of at least", "max_document_bytes", ("data.max_document_bytes=100", "data.sample_by=document")),
    ("a.txt", b"\n\na\nb" * 1 + b"\nc" * 60, "{}:3:1: a document or row", "max_document_bytes", ("data.max_document_bytes=40", "data.sample_by=paragraph")),
    ("a.txt", b"", "no text in it", "per line", ()),
    ("a.txt", b"\n \n\t\r\n\xe2\x80\x83\n", "no text in it (4 empty)", "per line", ()),
    ("a.txt", b"\xef\xbb\xbf", "no text in it", "per line", ()),
    ("a.txt", b"\xff\n\xfe\n", "no text in it (2 invalid_utf8)", "per line", (SKIP,)),
    ("a.txt", b"only one\n", "only one document", "break the text", ()),
    ("a.txt", b"copy\ncopy\n", "only one document", "break the text", ()),
    ("a.txt", b"two\nlines\n", "only one document", "break the text", ("data.sample_by=document",)),
    ("a.csv", b"id,txt\n1,x\n", "{}:1:1: no column 'text'; the columns are: id, txt (nearest: txt)", "text_column=txt", ()),
    ("a.csv", b"id;text\n1;x\n", "{}:1:1: the fields are separated by ';', not ','", "data.delimiter=", ()),
    ("a.tsv", b"id,text\n1,x\n", "{}:1:1: the fields are separated by ','", "data.delimiter=", ()),
    ("a.csv", b"text,text\n1,x\n", "{}:1:1: two columns are named 'text'", "rename", ()),
    ("a.csv", b"a,a,text\n1,x,y\n", "{}:1:1: two columns are named 'a'", "rename", ("data.template={a} {text}",)),
    ("a.csv", b"id,text\n1,x,y\n", "{}:2:1: 3 fields where the header has 2, in '1,x,y'", "quote", ()),
    ("a.csv", b'id,text\n1,"a\nb"\n2\n', "{}:4:1: 1 fields where the header has 2", "quote", ()),
    ("a.csv", b'text\nok\n"never closed\n' + b"x\n" * 9, "{}:3:1: not valid CSV: a quote that is never closed", "quote", ()),
    ("a.csv", b'text\n"a"b\n', "{}:2:1: not valid CSV: ',' expected after '\"'", "twice", ()),
    ("a.csv", b'text\n"' + b"x\n" * 99, "{}:2:1: not valid CSV: field larger than field limit (90)", "quote", ("data.max_document_bytes=90",)),
    ("a.csv", b"text\n\xe9t\xe9\n", "{}:2:1: byte 0xe9", "iconv", ()),
    ("a.csv", b"title,text\na,b\n", "{}:1:1: no column 'titel'", "text_column=title", ("data.template={titel}",)),
    ("a.jsonl", b'{"text": "a\n', "{}:1:10: not valid JSON: Unterminated string", "each line", ()),
    ("a.jsonl", b'{"text": "x"}\n{"text": }\n', "{}:2:10: not valid JSON: Expecting value, in '{\"text\": }'", "each line", ()),
    ("a.jsonl", b"[" * 5000, "{}:1:1: not valid JSON: nested too deeply", "each line", ()),
    ("a.jsonl", b'[\n{"text": "x"},\n', "{}:1:2: not valid JSON", "data.format=json", ()),
    ("a.jsonl", b"[1]\n", "{}:1:1: list instead of an object, in '[1]'", "text", ()),
    ("a.jsonl", b'"text"\n', "{}:1:1: str instead of an object", "text", ()),
    ("a.jsonl", b'{"txt": "x"}\n', "{}:1:1: no column 'text'; the columns are: txt", "text_column=txt", ()),
    ("a.jsonl", b'{"text": null}\n', "{}:1:1: 'text' is null, not a text", "quotes", ()),
    ("a.jsonl", b'{"text": 5}\n', "{}:1:1: 'text' is '5', not a text", "quotes", ()),
    ("a.jsonl", b'{"a": ["x"]}\n', "{}:1:1: 'a' is \"['x']\", not a text", "delete the row", ("data.template={a}",)),
    ("a.jsonl", b'{"text": "\\ud800 x"}\n', "{}:1:1: 'text' contains an unpaired UTF-16 surrogate", "re-export", ()),
    ("a.jsonl", b'{"text": "a\\u0000b"}\n', "{}:1:1: 'text' contains a NUL", "remove it", ()),
    ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', "{}:2:11: byte 0xe9 is not UTF-8 (byte 24 of the file)", "iconv", ()),
    ("a.jsonl", b'{"text": "%s"}' % (b"x" * 200), "{}:1:1: a document or row of at least 212 bytes", "256", ("data.max_document_bytes=90",)),
    ("a.json", b'{"text": "x"}\n', "{}:1:1: not valid JSON: not a list, in", "data.format=jsonl", ()),
    ("a.json", b'[{"text": "x"},\n {"text" "y"}]', "{}:2:10: not valid JSON: Expecting ':' delimiter", "list", ()),
    ("a.json", b'[{"text": "x"}\n', "{}:2:1: not valid JSON: the file ends inside the list", "list", ()),
    ("a.json", b'[{"text": "x"}, {"text": "y', "{}:1:26: not valid JSON: Unterminated string", "list", ()),
    ("a.json", b'[{"text": "x"}] trailing', "{}:1:17: not valid JSON: something follows the list", "one list", ()),
    ("a.json", b'["x" "y"]', "{}:1:6: not valid JSON: a comma or ] is missing", "list", ()),
    ("a.json", b'["x", 5]', "{}:1:7: int instead of an object", "text", ()),
    ("a.json", b'["x", ""]', "only one document", "break", ()),
    ("a.parquet", parquet(txt=["a"]), "{}: no column 'text'; the columns are: txt", "text_column=txt", ()),
    ("a.parquet", parquet(text=["a", None]), "{}: row 2: 'text' is null", "delete", ()),
    ("a.parquet", parquet(text=[1, 2]), "{}: row 1: 'text' is '1', not a text", "quotes", ()),
    ("a.parquet", parquet(text=["a"] * 9)[:-9], "{}: not a complete Parquet file", "again", ()),
    ("a.parquet", b"", "{}: not a complete Parquet file", "again", ()),
    ("a.parquet", MANY, "{}: not a complete Parquet file", "again", ()),
    ("a.arrow", MANY, "{}: not a complete Arrow file", "again", ()),
    ("a.arrow", arrow(pa.table({"text": ["a" * 99] * 99}))[:600], "{}: not a complete Arrow file", "again", ()),
    ("a.arrow", arrow(pa.table({"text": BROKEN})), "{}: row 2, byte 2: 'text' contains byte 0xff, which is not UTF-8", "re-export", ()),
    ("a.txt.gz", gzip.compress(MANY)[:-20], "{}: the archive is truncated", "gzip -t", ()),
    ("a.txt.bz2", bz2.compress(MANY)[:-20], "{}: the archive is truncated", "bzip2 -t", ()),
    ("a.txt.xz", lzma.compress(MANY)[:-20], "{}: the archive is truncated", "xz -t", ()),
    ("a.txt.zst", zstandard.compress(MANY)[:-20], "{}: the archive is truncated", "zstd -t", ()),
    ("a.txt.gz", MANY, "{}: the archive is damaged", "gzip -t", ()),
    ("a.txt.zst", MANY, "{}: the archive is damaged", "zstd -t", ()),
    ("a.jsonl.xz", lzma.compress(MANY)[:99] + b"x" * 99, "{}: the archive is", "xz -t", ()),
    ("a.parquet.gz", gzip.compress(parquet(text=["a"]))[:-20], "{}: the archive is truncated", "gzip -t", ()),
    ("a.docx", b"PK", "{}: cannot read this kind of file", ".parquet", ()),
    ("a.gz", gzip.compress(MANY), "{}: cannot read this kind of file", "data.format", ()),
    ("folder/a.pdf", b"x", "folder: a folder without texts", ".txt", ("data.path=folder",)),
    ("a.txt", b"x", "no such file or folder: ", "did you mean a.txt?", ("data.path=b.txt",)),
    ("a.txt", b"x", "no file matches *.csv", "**", ("data.path=*.csv",)),
    ("a.txt", b"x", "standard input (-) cannot be one of several", "alone", ("data.path=[a.txt, '-']",)),
    ("a.txt", MANY, "template = '{a': ", "", ("data.template={a",)),
    ("a.txt", MANY, "names of columns in braces", "", ("data.template='{}'",)),
    ("a.txt", MANY, "one character, and no quote", "", ("data.delimiter=abc",)),
    ("a.txt", MANY, "streaming, max_tokens and dataset go together", "", ("data.streaming=true",)),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path))
    (tmp_path / "texts.txt").unlink()
    return tmp_path


def prepare(monkeypatch, *overrides, **more):
    for key, value in workspace.environment("r", **more).items():
        monkeypatch.setenv(key, value)
    data.main(list(overrides))
    return json.loads(open("runs/r/data.json").read())


@pytest.mark.parametrize(
    ("name", "content", "message", "hint", "settings"), BAD, ids=[f"{i}-{each[0]}" for i, each in enumerate(BAD)]
)
def test_a_bad_input_is_named_with_its_place_and_leaves_nothing(
    folder, monkeypatch, name, content, message, hint, settings
):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        prepare(monkeypatch, f"data.path={name}", *settings)
    assert message.replace("{}", name, 1) in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.code == 2
    assert str(caught.value).replace("\n", "").isprintable()
    assert not list((folder / ".cache").glob("*/*"))


ROWS = b'{"text": "%s"}\n'


@pytest.mark.parametrize(
    ("name", "content", "kind", "place"),
    [
        ("a.txt", b"one\nbad \xff\ntwo\n", "invalid_utf8", "a.txt:2:5: 'bad "),
        ("a.txt", b"one\nba\0d\ntwo\n", "nul", "a.txt:2:3: 'ba\\x00d'"),
        ("a.csv", b"text\none\nbad,bad\ntwo\n", "ragged", "a.csv:3:1: 'bad,bad'"),
        ("a.csv", b"text\none\nb\xffd\ntwo\n", "invalid_utf8", "a.csv:3:2"),
        ("a.csv", b'text\none\n"bad"x\ntwo\n', "not_csv", "a.csv:3:1"),
        ("a.jsonl", ROWS % b"one" + b"bad\n" + ROWS % b"two", "not_json", "a.jsonl:2:1: 'bad'"),
        ("a.jsonl", ROWS % b"one" + ROWS % b"\xff" + ROWS % b"two", "invalid_utf8", "a.jsonl:2:11"),
        ("a.jsonl", ROWS % b"one" + b'{"x": 1}\n' + ROWS % b"two", "missing_column", "a.jsonl:2:1"),
        ("a.json", b'["one", null,\n "two"]', "not_an_object", "a.json:1:9"),
        ("a.json", b'["one", {"text": null}, "two"]', "null", "a.json:1:9"),
        ("a.parquet", parquet(text=["one", None, "two"]), "null", "a.parquet: row 2"),
        ("a.arrow", arrow(pa.table({"text": pa.chunked_array([["one", "two"], BROKEN.slice(1)])})), "invalid_utf8", "a.arrow: row 3"),
    ],
)  # fmt: skip
def test_with_on_error_skip_the_rest_is_read_and_the_damage_counted(folder, monkeypatch, name, content, kind, place):
    (folder / name).write_bytes(content)
    prepared = prepare(monkeypatch, f"data.path={name}", SKIP)
    assert prepared["train"]["documents"] + prepared["test"]["documents"] == 2
    assert prepared["dropped"] == {kind: 1}
    assert prepared["problems"][kind]["count"] == 1
    assert prepared["problems"][kind]["first"][0].startswith(place)


@pytest.mark.parametrize(("name", "row"), [("a.txt", b"%s\n"), ("a.jsonl", ROWS), ("a.csv", b"%s\n")])
def test_with_on_error_replace_what_is_no_utf8_becomes_the_replacement_character(folder, monkeypatch, name, row):
    (folder / name).write_bytes(b"text\n" * (name == "a.csv") + row % b"one" + row % b"b\xffd")
    prepared = prepare(monkeypatch, f"data.path={name}", "data.on_error=replace")
    assert prepared["train"]["documents"] + prepared["test"]["documents"] == 2
    assert prepared["dropped"] == {}
    assert prepared["problems"]["replaced"]["count"] == 1
    found = corpus.documents(DataConfig(path=name, on_error="replace"), Problems())
    assert "b\ufffdd" in list(found)
