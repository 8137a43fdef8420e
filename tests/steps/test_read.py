import bz2
import gzip
import io
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from maketune.core.config import DataConfig
from maketune.data import corpus, lines, sources
from maketune.data.formats import READERS
from maketune.data.problems import FIRST, Problems
from maketune_common.errors import UserError

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXTS = ["one", "zwölf\tund", "drei 日本 🎉", "001", "NA", 'quote " comma, end']


def config(path, **settings):
    return DataConfig(path=path if isinstance(path, list) else str(path), **settings)


def texts(path, **settings):
    """Documents, and what was left out."""
    problems = Problems()
    return list(corpus.documents(config(path, **settings), problems)), problems.dropped()


def packed(kind, rows):
    """The texts as a file of a format."""
    if kind == "txt":
        return ("\n".join(rows) + "\n").encode()
    if kind in ("csv", "tsv"):
        mark, quoted = "," if kind == "csv" else "\t", ('"' + row.replace('"', '""') + '"' for row in rows)
        return ("".join(f"{line}\n" for line in [f"id{mark}text", *(f"7{mark}{row}" for row in quoted)])).encode()
    if kind == "jsonl":
        return "".join(json.dumps({"n": 1, "text": row}) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps([{"n": {"a": [1]}, "text": row} for row in rows], indent=1).encode()
    table, sink = pa.table({"n": range(len(rows)), "text": rows}), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def test_a_pipe_by_its_name_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("one\n")
    with pytest.raises(UserError, match="neither a file nor a folder") as refused:
        texts(tmp_path / "a.txt")
    assert "DATA=-" in refused.value.hint
    assert texts(tmp_path)[0] == ["one"]


@pytest.mark.parametrize("archive", ["", *COMPRESS])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl", "json", "parquet", "arrow", "stream"])
def test_every_format_in_every_archive_gives_the_same_documents(tmp_path, monkeypatch, kind, archive):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"a.{kind.replace('stream', 'arrow')}{archive}"
    path.write_bytes(COMPRESS.get(archive, bytes)(packed(kind, TEXTS)))
    assert texts(path) == (TEXTS, {})
    assert not list((tmp_path / ".cache").glob("*/*"))


@pytest.mark.parametrize("archive", COMPRESS)
def test_an_archive_of_several_members_is_read_to_its_end(tmp_path, archive):
    path = tmp_path / f"a.txt{archive}"
    path.write_bytes(COMPRESS[archive](b"one\ntw") + COMPRESS[archive](b"o\nthree\n"))
    assert texts(path)[0] == ["one", "two", "three"]


@pytest.mark.parametrize("chunk", [3, 4, 7, 2**20])
@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "json"])
def test_chunks_tear_no_line_and_no_letter(tmp_path, monkeypatch, kind, chunk):
    monkeypatch.setattr(lines, "CHUNK", chunk)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + packed(kind, TEXTS).replace(b"\n", b"\r\n"))
    assert texts(path) == (TEXTS, {})
    if kind == "txt":
        path.write_bytes(packed(kind, TEXTS).replace(b"\n", b"\r"))
        assert texts(path) == (TEXTS, {})


def test_a_text_is_read_by_line_paragraph_or_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\r\n\n \t\nthree\n\n\n")
    for by, found in {
        "line": ["one", "two", "three"],
        "paragraph": ["one\ntwo", "three"],
        "document": ["one\ntwo\n\n \t\nthree\n\n"],
    }.items():
        assert texts(tmp_path / "a.txt", sample_by=by)[0] == found


def test_what_is_repaired_or_left_out_is_counted_with_its_first_places(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n" + b"\n" * 7 + b"10%\r20%\nz")
    problems = Problems()
    assert list(corpus.documents(config(path), problems)) == ["a", "10%", "20%", "z"]
    assert problems.counts == {"bom": 1, "crlf": 1, "lone_cr": 1, "empty": 7}
    assert problems.dropped() == {"empty": 7}
    assert problems.first["empty"] == [f"{path}:{line}:1" for line in range(2, 2 + FIRST)]
    assert problems.first["lone_cr"] == [f"{path}:9:1"]


def test_csv_fields_may_hold_delimiters_quotes_and_line_ends(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"one, ""two""\nthree"\n2,001\n3,NA\n')
    assert texts(tmp_path / "a.csv")[0] == ['one, "two"\nthree', "001", "NA"]
    (tmp_path / "b.csv").write_text("id;text\n1;a, b\n")
    assert texts(tmp_path / "b.csv", delimiter=";")[0] == ["a, b"]


def test_a_template_joins_columns_of_any_format(tmp_path):
    row = {"title": "T", "n": 3, "text": "body"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "b.csv").write_text("title,n,text\nT,3,body\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    assert texts(tmp_path, template="{title} {{{n}}}\n\n{text}")[0] == ["T {3}\n\nbody"] * 3


def test_a_template_leaves_out_damaged_csv_rows(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"n,text\n1,one\n2,b\xffd\n3,t\0o\n4,four\n")
    found, dropped = texts(tmp_path / "a.csv", template="{n} {text}", on_error="skip")
    assert found == ["1 one", "4 four"]
    assert dropped == {"invalid_utf8": 1, "nul": 1}


def test_every_format_of_the_settings_has_a_reader(tmp_path):
    for name in READERS:
        assert DataConfig(path="a", format=name).format == name
    with pytest.raises(ValueError, match="Input should be " + ", ".join(f"'{name}'" for name in [*READERS][:-1])):
        DataConfig(path="a", format="docx")


def test_a_json_list_may_hold_strings(tmp_path):
    (tmp_path / "a.json").write_text('["a", "b\\nc"]')
    assert texts(tmp_path / "a.json")[0] == ["a", "b\nc"]


def test_rows_that_only_json_takes_are_taken(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": NaN, "big": ' + "9" * 40 + "}\n")
    assert texts(tmp_path / "a.jsonl")[0] == ["a"]


def test_a_folder_is_read_in_order_of_name_and_hidden_files_are_not(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in {
        "b.txt": "b",
        "sub/c.TXT": "c",
        "a.csv": "text\na\n",
        ".hidden.txt": "no",
        "x.pdf": "no",
    }.items():
        (tmp_path / name).write_text(text)
    assert texts(tmp_path)[0] == ["a", "b", "c"]
    said = sources.describe(config(tmp_path))
    assert said[0] == f"3 files in {tmp_path}"
    assert "x.pdf" in said[1]


def test_globs_and_lists_name_each_file_once_and_a_name_that_exists_is_no_glob(tmp_path):
    for name in ("a.txt", "b.txt", "c[1].txt", "d.csv"):
        (tmp_path / name).write_text("text\n" + name[0])
    assert texts(tmp_path / "?.txt")[0] == ["text", "a", "text", "b"]
    assert texts(tmp_path / "c[1].txt")[0] == ["text", "c"]
    assert texts([str(tmp_path / "b.txt"), str(tmp_path / "*.txt")])[0] == ["text", "b", "text", "a", "text", "c"]


def test_the_test_texts_are_read_apart(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    data = config(tmp_path / "a.txt", test_path=str(tmp_path / "b.txt"))
    assert list(corpus.documents(data, Problems(), test=True)) == ["b"]
    assert sources.fingerprint(data) != sources.fingerprint(config(tmp_path / "a.txt"))
    assert len(sources.describe(data)) == 2


def test_a_name_that_says_nothing_is_read_with_a_format(tmp_path):
    (tmp_path / "corpus").write_text('{"text": "a"}')
    assert texts(tmp_path / "corpus", format="jsonl")[0] == ["a"]


def test_the_fingerprint_follows_the_content_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = sources.fingerprint(config(path))
    path.rename(tmp_path / "b.txt")
    assert sources.fingerprint(config(tmp_path / "b.txt")) == first
    (tmp_path / "b.txt").write_text("onE")
    assert sources.fingerprint(config(tmp_path / "b.txt")) != first
    assert sources.size(config(tmp_path / "b.txt")) == 3


def test_pythons_own_documentation_is_thousands_of_paragraphs():
    found = list(corpus.documents(DataConfig(builtin="python-docs"), Problems()))
    assert len(found) > 2000
    assert not any("\n" in text for text in found)
    assert sources.fingerprint(DataConfig(builtin="python-docs"))


def test_standard_input_is_read_once_and_its_copy_is_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    with corpus.rereadable(config("-"), Problems()) as data:
        assert [list(corpus.documents(data, Problems())) for _ in range(2)] == [["one", "two"]] * 2
        assert sources.describe(data) == ["standard input"]
    assert not list((tmp_path / ".cache/data").iterdir())


def test_what_is_wrong_in_standard_input_is_placed_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": 3}\n')))
    with (
        pytest.raises(UserError, match=r"^standard input:1:1: 'text' is '3'"),
        corpus.rereadable(config("-", format="jsonl"), Problems()) as data,
    ):
        list(corpus.documents(data, Problems()))
    assert not list((tmp_path / ".cache/data").iterdir())


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A folder as the Hub would serve it, with 10 rows."""
    (tmp_path / "set").mkdir()
    rows = {"text": [f"row {i}" for i in range(10)], "n": list(range(10))}
    pq.write_table(pa.table(rows), tmp_path / "set/train-0.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    sources._load.cache_clear()
    yield str(tmp_path / "set")
    sources._load.cache_clear()


def test_a_data_set_is_read_by_name_and_split(dataset):
    data = DataConfig(dataset=dataset, dataset_split="train[:4]", template="{n}: {text}")
    for _ in range(2):
        assert list(corpus.documents(data, Problems())) == [f"{i}: row {i}" for i in range(4)]
    other = DataConfig(dataset=dataset, dataset_split="train[4:8]")
    assert sources.fingerprint(data) == sources.fingerprint(data) != sources.fingerprint(other)


def test_a_stream_ends_with_its_tokens_and_can_be_read_again(dataset):
    data = DataConfig(dataset=dataset, streaming=True, max_tokens=9)
    with corpus.rereadable(data, Problems(), count_tokens=lambda text: len(text.split())) as spooled:
        assert [list(corpus.documents(spooled, Problems())) for _ in range(2)] == [["row 0", "row 1", "row 2"]] * 2
    with corpus.rereadable(data, Problems()) as spooled:  # 5 bytes are taken for a token, and EOS
        assert len(list(corpus.documents(spooled, Problems()))) == 4


def test_what_the_copy_of_a_stream_leaves_out_is_counted(dataset):
    data = DataConfig(
        dataset=dataset, streaming=True, max_tokens=100, on_error="skip", max_document_bytes=8, template="{text} {n}{n}"
    )
    problems = Problems()
    with corpus.rereadable(data, problems) as spooled:
        assert list(corpus.documents(spooled, problems)) == []
    assert problems.dropped() == {"too_long": 10}


@pytest.mark.parametrize(("name", "row"), [("a.txt", b"x" * 60), ("a.jsonl", json.dumps({"text": "y" * 40}).encode())])
def test_too_long_a_line_is_left_out_without_being_held(tmp_path, monkeypatch, name, row):
    monkeypatch.setattr(lines, "CHUNK", 16)
    good = row.replace(b"x" * 50, b"x").replace(b"y" * 39, b"y")
    (tmp_path / name).write_bytes(b"\n".join([good, row * 3, good, row, good]))
    found, dropped = texts(tmp_path / name, on_error="skip", max_document_bytes=45)
    assert len(found) == 3
    assert dropped == {"too_long": 2}


@pytest.mark.parametrize(("ending", "compress"), [("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_damaged_later_stream_of_an_archive_is_not_taken_for_garbage(tmp_path, ending, compress):
    first, second = compress(b"one\n"), compress(b"two\n")
    whole, torn = tmp_path / f"whole.txt.{ending}", tmp_path / f"torn.txt.{ending}"
    whole.write_bytes(first + second)
    torn.write_bytes(first + bytes([second[0] ^ 1]) + second[1:])
    assert texts(whole)[0] == ["one", "two"]
    with pytest.raises(UserError, match=r"torn\.txt"):
        texts(torn)


def test_an_arrow_stream_cut_between_two_batches_is_not_taken_for_whole(tmp_path):
    table = pa.table({"text": ["a", "b", "c", "d"]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    content = (tmp_path / "a.arrow").read_bytes()
    assert len(texts(tmp_path / "a.arrow")[0]) == 4
    (tmp_path / "a.arrow").write_bytes(content[:-8])
    with pytest.raises(UserError, match="without its end mark"):
        texts(tmp_path / "a.arrow")


def test_a_text_file_has_no_columns_for_a_template(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(UserError, match=r"no columns for data\.template"):
        list(corpus.documents(DataConfig(path=str(tmp_path / "a.txt"), template="{text}"), Problems()))
