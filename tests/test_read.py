import json
from collections import Counter

import pytest

from maketune.config import DataConfig
from maketune.data import read
from maketune.errors import UserError


def texts(path, column="text"):
    dropped = Counter()
    return list(read.documents(DataConfig(path=str(path), text_column=column), dropped)), dict(dropped)


def test_a_text_file_holds_a_sample_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  \nzwölf\nlast".encode())
    assert texts(tmp_path / "a.txt") == (["one", "zwölf", "last"], {"empty": 2})


def test_csv_fields_may_hold_commas_quotes_and_line_ends(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"one, ""two""\nthree"\n2,001\n3,NA\n')
    assert texts(tmp_path / "a.csv")[0] == ['one, "two"\nthree', "001", "NA"]


def test_jsonl_takes_the_column_asked_for(tmp_path):
    rows = [{"body": "one\ntwo", "n": 1}, {"body": "drei ß"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert texts(tmp_path / "a.jsonl", "body")[0] == ["one\ntwo", "drei ß"]


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


def test_pythons_own_documentation_is_thousands_of_paragraphs():
    found = list(read.documents(DataConfig(builtin="python-docs"), Counter()))
    assert len(found) > 2000
    assert not any("\n" in text for text in found)


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.txt", b"good\nbad \xff\n", ":2:5: byte 0xff is not UTF-8", "iconv"),
        ("a.csv", b"id,txt\n1,x\n", ":1: no column 'text'; those there are: id, txt (nearest: txt)", "text_column=txt"),
        ("a.csv", b"id;text\n1;x\n", ":1: its fields are separated by ';'", "commas"),
        ("a.txt", "x".encode("utf-16"), ":1:1: byte 0xff is not UTF-8", "iconv -f UTF-16"),
        ("a.jsonl", b'{"text": "a\n', ":1:10: not valid JSON: Unterminated string", "a line"),
        ("a.jsonl", b"[" * 5000, ":1:1: not valid JSON: nested too deeply", "a line"),
        ("a.csv", b"text,text\n1,x\n", "two columns are named 'text'", "rename"),
        ("a.csv", b"id,text\n1,x,y\n", ":2: 3 fields where the header has 2", "quote"),
        ("a.csv", b'text\n"never closed\n', "not valid CSV", "quote"),
        ("a.csv", b"text\n\xe9t\xe9\n", ":2:1: byte 0xe9", "iconv"),
        ("a.jsonl", b'{"text": "x"}\n{"text": }\n', ":2:10: not valid JSON", "a line"),
        ("a.jsonl", b"[1]\n", ":1: list where an object is wanted", "text"),
        ("a.jsonl", b'{"txt": "x"}\n', ":1: no column 'text'; those there are: txt", "text_column=txt"),
        ("a.jsonl", b'{"text": null}\n', "'text' is null, not a text", "quotes"),
        ("a.jsonl", b'{"text": "\\ud800 x"}\n', ":1: 'text' holds half a surrogate pair", "letter"),
        ("a.docx", b"PK", "cannot read this kind of file", ".txt"),
    ],
)
def test_wrong_input_names_the_place_and_the_fix(tmp_path, name, content, message, hint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        texts(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.code == 2


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "letters.txt").write_text("x")
    with pytest.raises(UserError, match="no such file or folder") as caught:
        texts(tmp_path / "leters.txt")
    assert "letters.txt" in caught.value.hint


def test_a_folder_without_texts_says_which_it_takes(tmp_path):
    (tmp_path / "x.pdf").write_text("x")
    with pytest.raises(UserError, match="a folder without texts") as caught:
        texts(tmp_path)
    assert ".csv" in caught.value.hint


def test_blank_lines_before_the_header_are_passed_over(tmp_path):
    (tmp_path / "a.csv").write_text("\n\ntext\nx\n")
    assert texts(tmp_path / "a.csv")[0] == ["x"]
