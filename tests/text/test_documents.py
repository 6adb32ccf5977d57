from __future__ import annotations

import codecs
import io
import json
import sys
import types
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from threefold.errors import ConfigError, DocumentError, InputError
from threefold.text import rich
from threefold.text.documents import Loading, Skipped, content_hash, load_files, prepare
from threefold.types import Document


def load(*paths: Path, **options: str) -> tuple[list[Document], list[Skipped]]:
    loaded = list(load_files(paths, Loading.from_dict(options)))
    return [d for d in loaded if isinstance(d, Document)], [s for s in loaded if isinstance(s, Skipped)]


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def one(folder: Path, name: str, content: str | bytes, **options: str) -> Document:
    documents, skipped = load(write(folder, {name: content}) / name, **options)
    assert not skipped
    (document,) = documents
    return document


def reason(folder: Path, name: str, content: str | bytes, **options: str) -> str:
    documents, skipped = load(write(folder, {name: content}) / name, **options)
    assert not documents
    assert skipped[0].path.startswith(str(folder / name))
    return skipped[0].reason


# ---- folders --------------------------------------------------------------------------------------------


def test_a_folder_is_walked_in_sorted_order_without_tools_and_hidden_files(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.md", "a/b/c.py", ".hidden.txt", ".git/x.txt", "node_modules/x.js", "__pycache__/x.txt"]
    documents, skipped = load(write(tmp_path, dict.fromkeys(names, "some text")))
    assert [d.id for d in documents] == ["a/b/c.py", "a/z.md", "b.txt"]
    assert documents[0].source == str(tmp_path / "a/b/c.py")
    assert not skipped


def test_a_file_that_goes_while_its_folder_is_read_is_not_called_a_link(tmp_path: Path) -> None:
    loading = load_files(write(tmp_path, {"a.txt": "a", "b.txt": "b", "c.txt": "c"}))
    next(loading)
    (tmp_path / "b.txt").unlink()
    gone, kept = loading
    assert isinstance(gone, Skipped)
    assert gone.reason.endswith("b.txt was there when its folder was read, and is gone")
    assert not gone.empty
    assert isinstance(kept, Document)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    documents, skipped = load(tmp_path)
    assert not documents
    assert [(s.path, s.reason) for s in skipped] == [(str(tmp_path), "the folder has no files")]


def test_a_missing_path_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_files([tmp_path, tmp_path / "nowhere"])


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path, {"a/x.txt": "text"})
    (tmp_path / "a/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nothing")
    documents, skipped = load(tmp_path)
    assert [d.id for d in documents] == ["a/x.txt"]
    assert ["leads back" in skipped[0].reason, "broken link" in skipped[1].reason] == [True, True]


@pytest.mark.parametrize("left_out", ["made", "../link/made", "made/.", "../docs/made"])
def test_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str) -> None:
    """Results among the documents: by any of their names, and for documents that are reached by another one."""
    docs = tmp_path / "docs"
    (docs / "made" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(docs)
    (docs / "other").symlink_to(docs / "made")
    for name in ("a.txt", "made/b.txt", "made/deep/c.txt", "made.txt"):
        (docs / name).write_text(name)
    monkeypatch.chdir(docs)
    for place in (docs, tmp_path / "link"):
        assert [item.id for item in load_files(place, without=[left_out]) if isinstance(item, Document)] == [
            "a.txt",
            "made.txt",
        ]
    given = [docs / "made", docs / "made" / "deep", docs / "made" / "b.txt", docs / "a.txt"]
    assert [item.id for item in load_files(given, without=[left_out]) if isinstance(item, Document)] == ["a.txt"]


def test_unreadable_files_and_folders_are_skipped_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.txt": "secret", "b.txt": "public", "c/d.txt": "secret"})
    real_open, real_iterdir = Path.open, Path.iterdir

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)

    def refuse_folder(path: Path) -> Any:
        if path.name == "c":
            raise PermissionError(13, "Permission denied")
        return real_iterdir(path)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse_folder)
    documents, skipped = load(tmp_path)
    assert [d.id for d in documents] == ["b.txt"]
    assert [(s.path, s.reason) for s in skipped] == [
        (str(tmp_path / "a.txt"), "the file cannot be read: Permission denied"),
        (str(tmp_path / "c"), "the folder cannot be read: Permission denied"),
    ]


# ---- bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "Grüße 今天".encode(),
        codecs.BOM_UTF8 + "Grüße 今天".encode(),
        codecs.BOM_UTF16_LE + "Grüße 今天".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "Grüße 今天".encode("utf-16-be"),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16 little", "utf-16 big"],
)
@pytest.mark.parametrize("name", ["x.txt", "x.html", "x.csv"])
def test_encodings(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "x.csv":
        codec = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        content = ("text\r\n" + content.decode(codec) + "\r\n").encode(codec)
    assert one(tmp_path, name, content).text == "Grüße 今天"


@pytest.mark.parametrize(
    ("content", "byte"),
    [(b"abc\xff", "at byte 3"), (codecs.BOM_UTF8 + b"abc\xff", "at byte 6"), (b"text\nab\xffc\n", "at byte 7")],
)
@pytest.mark.parametrize("name", ["x.txt", "x.csv"])
def test_invalid_utf8_names_file_and_byte(tmp_path: Path, name: str, content: bytes, byte: str) -> None:
    message = reason(tmp_path, name, content)
    assert f"{tmp_path / name} is not valid UTF-8" in message
    assert byte in message


def test_half_a_character_of_utf16(tmp_path: Path) -> None:
    assert "not valid UTF-16" in reason(tmp_path, "x.jsonl", codecs.BOM_UTF16_LE + b"a\0b")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\0\0\0", codecs.BOM_UTF32_LE + "text".encode("utf-32-le")])
def test_a_binary_file_is_skipped(tmp_path: Path, content: bytes) -> None:
    assert reason(tmp_path, "x.png", content) == "the file is binary"


@pytest.mark.parametrize(("content", "expected"), [("", "is empty"), (" \n\t\u3000", "no text"), ("\ufeff", "no text")])
def test_a_file_without_text_is_skipped_as_empty(tmp_path: Path, content: str, expected: str) -> None:
    _, skipped = load(write(tmp_path, {"x.txt": content}) / "x.txt")
    assert expected in skipped[0].reason
    assert skipped[0].empty


def test_nul_late_in_a_text_becomes_the_replacement_character(tmp_path: Path) -> None:
    text = one(tmp_path, "x.txt", "a" * 9000 + "\0b").text
    assert text == "a" * 9000 + "\ufffdb"


def test_a_lone_surrogate_in_json_becomes_the_replacement_character(tmp_path: Path) -> None:
    row = '{"text": "a\\ud800b\\u0000c", "tag": "\\udfff"}\n'
    document = one(tmp_path, "x.jsonl", row)
    assert document.text == "a\ufffdb\ufffdc"
    assert document.metadata == {"tag": "\ufffd"}


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / "bad\udcff.txt").write_text("text")
    except OSError:
        pytest.skip("this file system refuses such names")
    documents, _ = load(tmp_path)
    assert documents[0].id == "bad\ufffd.txt"


# ---- formats --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("intro\n\n# The Title #\n\n## Other", "The Title"),
        ("The Title\n=====\ntext", "The Title"),
        ("```\n# no\n```\n\n## The Title", "The Title"),
        ('---\ntitle: "The Title"\ntags: x\n---\n# Other', "The Title"),
        ("---\ndate: 2020\n---\n# The Title", "The Title"),
        ("#hashtag, no heading", ""),
    ],
)
def test_title_of_markdown(tmp_path: Path, text: str, title: str) -> None:
    assert one(tmp_path, "x.md", text).title == title


def test_a_comment_of_a_program_is_no_title(tmp_path: Path) -> None:
    assert one(tmp_path, "x.py", "# comment\nx = 1\n").title == ""


def test_html_gives_visible_text(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title> The\n title </title><style>p {}</style></head><body>
    <h1>Head</h1><p>One <b>bold</b>ly   spaced</p><script>var x</script><!-- comment --><ul><li>a<li>b</ul>
    <p hidden>no</p><div style="display: none">no</div>x<br>y<table><tr><td>1<td>2</tr></table>
    <pre>a\n  b</pre>&amp; &lt;end&gt;</body></html>"""
    document = one(tmp_path, "x.html", page)
    assert document.title == "The title"
    words = "# Head One boldly spaced a b x y 1 2 a b & <end>"
    assert document.text.split() == words.split()
    assert document.text.startswith("# Head\n\nOne boldly spaced\n\na")


def test_lines_of_pre_stay_as_they_are(tmp_path: Path) -> None:
    code = "def f():\r\n    if x:\n\treturn 1\n\n\n\nprint(2)  # \ue000"
    page = f"<pre>\n  {code}\n</pre><p>After   it</p>\n\n\n<p>end"
    text = one(tmp_path, "x.html", page).text
    assert text == "  " + code.replace("\r", "") + "\n\n\nAfter it\n\nend"


def test_html_title_falls_back_to_the_heading(tmp_path: Path) -> None:
    assert one(tmp_path, "x.htm", "<h1>Only <i>this</i></h1>text").title == "Only this"


@pytest.mark.parametrize(
    ("page", "text", "title"),
    [
        ("<!doctype html><title>My page</title>Hello", "Hello", "My page"),  # no <head>: it may be left out
        ("<title> </title><h1></h1><h1>Head</h1>", "#\n\n# Head", "Head"),
        ("<svg><title>Icon</title></svg><h1>Head</h1>", "# Head", "Head"),
    ],
)
def test_a_title_is_not_text_and_the_first_that_says_something(
    tmp_path: Path, page: str, text: str, title: str
) -> None:
    document = one(tmp_path, "x.html", page)
    assert (document.text, document.title) == (text, title)


def test_html_in_its_declared_encoding(tmp_path: Path) -> None:
    page = '<meta charset="{}"><p>Grüße</p>'
    assert one(tmp_path, "x.html", page.format("latin-1").encode("latin-1")).text == "Grüße"
    assert "not valid UTF-8" in reason(tmp_path, "x.html", page.format("utf-8").encode("latin-1"))
    for unknown in ("klingon", "undefined"):
        assert f"unknown encoding {unknown!r}" in reason(tmp_path, "x.html", page.format(unknown).encode("latin-1"))
    assert "declares ascii" in reason(tmp_path, "x.html", page.format("ascii").encode())


@pytest.mark.parametrize(
    ("said", "codec", "text"),
    [
        ("iso-8859-1", "cp1252", "“quoted” – 5 €"),
        ("gb2312", "gbk", "朱镕基"),
        ("Shift_JIS", "cp932", "①"),
        ("euc-kr", "cp949", "똠"),
        ("windows-1252", "utf-8-sig", "Grüße"),  # the mark says more than the page
    ],
)
def test_html_in_the_encoding_that_browsers_read(tmp_path: Path, said: str, codec: str, text: str) -> None:
    assert one(tmp_path, "x.html", f'<meta charset="{said}"><p>{text}</p>'.encode(codec)).text == text


def test_a_byte_that_only_the_declared_encoding_has(tmp_path: Path) -> None:
    page = b'<meta charset="iso-8859-1"><p>caf\xe9 \x81 x'  # not in windows-1252
    assert one(tmp_path, "x.html", page).text == "caf\xe9 \x81 x"


def test_a_page_that_the_parser_refuses_does_not_end_the_job(tmp_path: Path) -> None:
    pages: dict[str, str | bytes] = {"a.html": "<p>a", "b.html": "<p>x <![foo bar]> y", "c.html": "<p>c"}
    documents, skipped = load(write(tmp_path, pages))
    assert [d.text for d in documents] == ["a", "c"]
    assert [s.reason.split(":")[0] for s in skipped] == [f"{tmp_path / 'b.html'} is not HTML"]
    assert "\n" not in skipped[0].reason


def test_html_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    page = "<div>" * 5000 + "deep" + "</div>" * 5000
    assert one(tmp_path, "x.html", page).text == "deep"


@pytest.mark.parametrize("page", ["file.txt", "<?xml version='1.0'?><html><p>x</p></html>"])
def test_html_that_beautifulsoup_would_warn_about(tmp_path: Path, page: str) -> None:
    assert one(tmp_path, "x.html", page).text


# ---- rows -----------------------------------------------------------------------------------------------

TABLE = 'id,text,title,language,year\n7,"first, with\nlines",T,de,2020\n,second,,,\n'


def test_csv(tmp_path: Path) -> None:
    documents, _ = load(write(tmp_path, {"a/x.csv": TABLE}))
    assert [d.id for d in documents] == ["a/x.csv:7", "a/x.csv:2"]
    first = documents[0]
    assert (first.text, first.title, first.language) == ("first, with\nlines", "T", "de")
    assert first.metadata == {"year": "2020"}
    assert first.source == str(tmp_path / "a/x.csv")


def test_an_open_quote_does_not_swallow_the_rows_after_it(tmp_path: Path) -> None:
    documents, skipped = load(write(tmp_path, {"x.csv": 'text,n\na,1\n"b,2\nc,3\n'}) / "x.csv")
    assert [document.text for document in documents] == ["a"]
    assert "x.csv, line 3: unexpected end of data, on line 4" in skipped[0].reason
    table = 'text,n\n"a" b,1\nc,2\n"d ""e""",3\n5" f,4\n"g,5\n'  # within one line, nothing else is lost
    documents, skipped = load(write(tmp_path, {"y.csv": table}) / "y.csv")
    assert [document.text for document in documents] == ["a b", "c", 'd "e"', '5" f']  # quoted words are words
    assert [one.path for one in skipped] == [f"{tmp_path}/y.csv:5"]


def test_tsv_and_other_columns(tmp_path: Path) -> None:
    document = one(tmp_path, "x.tsv", "body\tkey\nhello\tk\n", text_field="body", id_field="key")
    assert (document.id, document.text) == ("x.tsv:k", "hello")


def test_unknown_loading_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'txt_field'"):
        Loading.from_dict({"txt_field": "x"})


def test_a_table_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    message = reason(tmp_path, "x.csv", "a,b\n1,2\n")
    assert "no column 'text'; its columns are a, b" in message


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", "tabs")])
def test_a_table_with_other_marks_between_its_columns(mark: str, shown: str, tmp_path: Path) -> None:
    lines = ("id", "text"), ("1", "fox")
    content = "".join(mark.join(line) + "\n" for line in lines)
    message = reason(tmp_path, "x.csv", content)
    assert message.endswith(f"it is separated by {shown}: save it with commas, or with tabs as .tsv")
    assert one(tmp_path, "x.csv", "a;b\nfox\n", text_field="a;b").text == "fox"  # whose name it is


def test_a_bad_row_of_a_table_does_not_stop_the_others(tmp_path: Path) -> None:
    documents, skipped = load(write(tmp_path, {"x.csv": "text,n\na,1\nb\n ,3\n\nc,4\n"}))
    assert [d.text for d in documents] == ["a", "c"]
    assert [s.path for s in skipped] == [f"{tmp_path}/x.csv:2", f"{tmp_path}/x.csv:3"]
    assert [s.reason for s in skipped] == ["the row has 1 fields, the header has 2", "there is no text in it"]


def test_columns_of_one_name_would_lose_all_but_the_last(tmp_path: Path) -> None:
    assert "more than one column 'tag'" in reason(tmp_path, "x.csv", "text,tag,tag\na,1,2\n")
    assert one(tmp_path, "y.csv", "text,,\na,,\n").text == "a"  # empty columns that a spreadsheet leaves


def test_blank_lines_before_the_header_of_a_table(tmp_path: Path) -> None:
    assert one(tmp_path, "x.csv", "\n\ntext,n\na,1\n").id == "x.csv:1"


@pytest.mark.parametrize("end", ["\r", "\r\n", "\r\r\n"])  # of old Macs, of Windows, of Windows twice
def test_the_line_ends_of_a_table(tmp_path: Path, end: str) -> None:
    documents, skipped = load(write(tmp_path, {"x.csv": end.join(["text,n", "a,1", '"b\rc",2', ""])}))
    assert ([document.text for document in documents], skipped) == (["a", "b\rc"], [])


def test_a_carriage_return_within_a_row_ends_it(tmp_path: Path) -> None:
    documents, skipped = load(write(tmp_path, {"x.csv": "text,n\na\rb,1\nc,2\n"}))
    assert [document.text for document in documents] == ["b", "c"]
    assert [one.reason for one in skipped] == ["the row has 1 fields, the header has 2"]


def test_a_field_of_a_million_characters(tmp_path: Path) -> None:
    assert len(one(tmp_path, "x.csv", "text\n" + "a" * 1_000_000).text) == 1_000_000


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        '{"text": "a", "id": 5, "tags": ["x"], "n": 1.5}',
        "",
        "not json",
        '["a"]',
        '{"text": 3}',
        '{"text": "x", "n": NaN}',
        '{"text": "last"}',
    ]
    documents, skipped = load(write(tmp_path, {"x.jsonl": "\n".join(rows)}))
    assert [d.id for d in documents] == ["x.jsonl:5", "x.jsonl:7"]
    assert documents[0].metadata == {"tags": ["x"], "n": 1.5}
    assert [s.path.rpartition(":")[2] for s in skipped] == ["3", "4", "5", "6"]
    expected = ["not JSON", "not a record but list", "no text in the field 'text'", "NaN is not a JSON number"]
    assert all(part in s.reason for part, s in zip(expected, skipped, strict=True))


def test_a_row_that_is_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    deep = "[" * 5_000 + "]" * 5_000
    rows = f'{{"text": "a"}}\n{{"text": "x", "m": {deep}}}\n{{"text": "after"}}\n'
    documents, skipped = load(write(tmp_path, {"x.jsonl": rows}))
    assert [d.text for d in documents] == ["a", "after"]
    assert "maximum recursion depth" in skipped[0].reason or "nested too deeply" in skipped[0].reason


def test_metadata_that_is_nested_deeper_than_python_recurses() -> None:
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(DocumentError, match="nested too deeply"):
        prepare(Document("x", "text", metadata={"m": deep}))


@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
def test_only_line_feeds_end_a_json_line(tmp_path: Path, codec: str) -> None:
    document = one(tmp_path, "x.jsonl", '{"text": "a\u2028b\x85c"}\n'.encode(codec))
    assert document.text == "a\u2028b\x85c"


def test_json(tmp_path: Path) -> None:
    documents, _ = load(write(tmp_path, {"x.json": json.dumps([{"text": "a"}, {"text": "b"}])}))
    assert [d.id for d in documents] == ["x.json:1", "x.json:2"]
    assert one(tmp_path, "x.json", '{"text": "a"}').text == "a"
    assert "neither a list of records nor" in reason(tmp_path, "x.json", '{"name": "package"}')
    assert "is not JSON" in reason(tmp_path, "x.json", "{")
    assert "is not JSON" in reason(tmp_path, "x.json", "[" * 100_000)


def test_a_list_is_no_id_title_or_language(tmp_path: Path) -> None:
    odd: dict[str, Any] = {"id": [1], "title": {"de": "x"}, "language": ["de"]}
    rows = [{"text": "a", field: value} for field, value in odd.items()]
    rows.append({"text": "b", "id": 7, "tags": ["kept"]})
    documents, skipped = load(write(tmp_path, {"x.jsonl": "\n".join(map(json.dumps, rows))}))
    assert [s.reason for s in skipped] == [f"the field {field!r} is neither text nor a number" for field in odd]
    assert [(d.id, dict(d.metadata)) for d in documents] == [("x.jsonl:7", {"tags": ["kept"]})]


# ---- office files ---------------------------------------------------------------------------------------


def test_without_the_extra_a_pdf_is_skipped_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    assert 'pip install "threefold[docs]"' in reason(tmp_path, "x.pdf", b"%PDF-1.7\n\0")


@pytest.mark.parametrize("name", ["x.pdf", "x.docx", "x.pptx", "x.xlsx", "x.epub"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("markitdown", "markitdown.converters"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    assert "is damaged: it does not begin as" in reason(tmp_path, name, "just text")


def test_an_office_file_behind_a_password_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("markitdown", "markitdown.converters"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    said = reason(tmp_path, "x.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512))
    assert "is protected by a password, or in the format of Office before 2007. Save it as docx" in said


def test_office_files_by_a_stand_in_for_markitdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("markitdown")
    module.MissingDependencyException = type("MissingDependencyException", (Exception,), {})

    class MarkItDown:
        def __init__(self, *, enable_builtins: bool, enable_plugins: bool) -> None:
            assert not enable_builtins
            assert not enable_plugins

        def register_converter(self, converter: object) -> None:
            assert type(converter).__name__ in ("PdfConverter", "XlsxConverter")

        def convert_local(self, path: Path) -> Any:
            if path.name == "broken.pdf":
                raise RuntimeError("no trailer\nmore")
            if path.name == "x.xlsx":
                raise module.MissingDependencyException
            return types.SimpleNamespace(markdown="# Page\n\ntext", title=None)

    module.MarkItDown = MarkItDown
    monkeypatch.setitem(sys.modules, "markitdown", module)
    converters: Any = types.ModuleType("markitdown.converters")
    for name in ("PdfConverter", "XlsxConverter"):
        setattr(converters, name, type(name, (), {}))
    monkeypatch.setitem(sys.modules, "markitdown.converters", converters)
    assert one(tmp_path, "good.pdf", b"%PDF-1.7").text == "# Page\n\ntext"
    assert reason(tmp_path, "broken.pdf", b"%PDF-1.7").endswith("is damaged or not readable: no trailer more")
    assert "threefold[docs]" in reason(tmp_path, "x.xlsx", b"PK\x03\x04")


@pytest.mark.parametrize(("suffix", "way"), [("docx", "plain text"), ("xlsx", "csv")])
def test_an_office_file_that_unpacks_to_gigabytes_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, way: str
) -> None:
    for module in ("markitdown", "markitdown.converters"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    monkeypatch.setattr(rich, "MOST_XML", 1_000_000)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("word/document.xml", bytes(2_000_000))
        parts.writestr("word/_rels/document.xml.rels", bytes(1_000_000))
        parts.writestr("word/media/film.mp4", bytes(4_000_000))
    said = reason(tmp_path, f"x.{suffix}", packed.getvalue())
    assert said.endswith(f"unpacks to 3 MB of XML; at most 1 MB are read. Save it as several files, or as {way}")


def small_epub() -> bytes:
    """A book of two chapters."""
    container = (
        "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles>"
        "<rootfile full-path='b.opf'/></rootfiles></container>"
    )
    package = (
        "<package xmlns='http://www.idpf.org/2007/opf' xmlns:dc='http://purl.org/dc/elements/1.1/'>"
        "<metadata><dc:title>On foxes</dc:title></metadata><manifest>"
        "<item id='a' href='a.xhtml' media-type='application/xhtml+xml'/>"
        "<item id='b' href='b.xhtml' media-type='application/xhtml+xml'/></manifest>"
        "<spine><itemref idref='b'/><itemref idref='a'/></spine></package>"
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as parts:
        parts.writestr("mimetype", "application/epub+zip")
        parts.writestr("META-INF/container.xml", container)
        parts.writestr("b.opf", package)
        parts.writestr("a.xhtml", "<html><body><h1>Dens</h1><p>Foxes live in dens.</p></body></html>")
        parts.writestr("b.xhtml", "<html><body><h1>Tails</h1><p>They have tails.</p></body></html>")
    return packed.getvalue()


def test_a_book_by_markitdown(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="the extra `docs` is not installed")
    book = one(tmp_path, "x.epub", small_epub())
    assert book.title == "On foxes"
    assert book.text.index("# Tails") < book.text.index("They have tails.") < book.text.index("# Dens")  # by its spine
    assert "is damaged or not readable" in reason(tmp_path, "broken.epub", b"PK\x03\x04 and nothing of a zip file")


def test_office_files_by_markitdown(tmp_path: Path) -> None:
    pytest.importorskip("markitdown", reason="the extra `docs` is not installed")
    broken = reason(tmp_path, "broken.pdf", b"%PDF-1.7\n1 0 obj\n<<garbage")
    assert broken.endswith("broken.pdf is damaged or not readable: Unexpected EOF")
    assert "is damaged or not readable" in reason(tmp_path, "broken.docx", b"PK\x03\x04 and nothing of a zip file")
    documents, skipped = load(write(tmp_path, {"good.pdf": small_pdf("Hello from a page")}) / "good.pdf")
    assert not skipped
    assert documents[0].text.strip() == "Hello from a page"


def small_pdf(text: str) -> bytes:
    """One page with one line of text."""
    content = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode()
    objects: Sequence[bytes] = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    trailer = b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % len(data)
    return data + b"xref\n0 6\n0000000000 65535 f \n" + table + trailer


# ---- hashes ---------------------------------------------------------------------------------------------


def test_the_hash_is_of_what_a_document_says() -> None:
    document = Document("a", "text", "here", metadata={"x": 1, "y": [2]})
    same = replace(document, id="b", source="there", metadata={"y": [2], "x": 1})
    assert content_hash(document) == content_hash(same)
    changed = [
        replace(document, text="other"),
        replace(document, title="t"),
        replace(document, language="de"),
        replace(document, metadata={}),
    ]
    assert len({content_hash(document), *map(content_hash, changed)}) == 5
    assert len(content_hash(document)) >= 16


def test_metadata_that_is_not_json_is_refused_by_name() -> None:
    with pytest.raises(DocumentError, match="document 'a': its metadata is not JSON"):
        prepare(Document("a", "text", metadata={"x": object()}))
