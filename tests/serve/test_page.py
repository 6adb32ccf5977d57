"""The page of `GET /ui`: what a browser may do for it, and what one shows of real hits, where there is one."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from tests.browsers import dom, needs_browser
from tests.serve.fakes import START_S, ServedEncoder, make_server, serving

from threefold.serve import page
from threefold.serve.keys import create_key
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer

#: Emoji are two characters in JavaScript and one here; the second sentence answers.
TEXT = "\U0001f98a\U0001f98a A lazy dog. The quick brown fox jumps over it."


@pytest.fixture(scope="module")
def url(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = ServeConfig(collections=str(tmp_path_factory.mktemp("collections")))
    with serving(make_server(ServedEncoder(tokenizer, name="fake-m3"), config)) as address:
        yield address


@pytest.fixture(scope="module")
def papers(url: str) -> str:
    """A collection of two documents; its name."""
    with httpx.Client(base_url=url, timeout=START_S) as client:
        client.put("/collections/papers").raise_for_status()
        documents = [{"id": "fox", "title": "<b>Foxes</b>", "text": TEXT}, {"id": "dog", "text": "Lazy dogs."}]
        body = "\n".join(map(json.dumps, documents))
        client.post("/collections/papers/documents", content=body).raise_for_status()
    return "papers"


def searched(url: str, tmp_path: Path, query: dict[str, str]) -> str:
    return dom(f"{url}/ui?{urlencode(query)}", tmp_path)


def texts_of(kind: str, page: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(rf"<{kind}\b[^>]*>(.*?)</{kind}>", page, re.DOTALL)]


def test_a_browser_runs_what_is_in_the_file_and_nothing_else(url: str) -> None:
    answer = httpx.get(f"{url}/ui")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    for kind in ("style", "script"):
        (part,) = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|//[a-z]|innerHTML|style=|\son\w+=", answer.text.partition("<script>")[0])
    assert "innerHTML" not in answer.text


@needs_browser
def test_hits_with_their_reasons(url: str, papers: str, tmp_path: Path) -> None:
    body = {"query": "quick fox", "k": 10, "why": True, "quote": True}
    hits = httpx.post(f"{url}/collections/{papers}/search", json=body, timeout=START_S).json()["hits"]
    first = hits[0]
    page = searched(url, tmp_path, {"in": papers, "q": "quick fox"})
    assert texts_of("h2", page) == [f"{i}. {one['title'] or one['document_id']}" for i, one in enumerate(hits, 1)]
    assert first["title"] == "<b>Foxes</b>"
    articles = texts_of("article", page)
    assert "<bdi>fox</bdi>" in articles[0]  # an id that is read from right to left turns nothing else around
    assert "".join(re.findall(r"<mark\b[^>]*>(.*?)</mark>", articles[0])) == first["quote"]["text"]
    assert first["quote"]["text"] == "The quick brown fox jumps over it."
    assert "fox" in {one.strip() for one in re.findall(r'class="token"[^>]*>(.*?)</', articles[0])}
    for name, score in first["why"]["scores"].items():
        assert f"{name} {score:.3f}" in articles[0]
    assert re.search(r"\d+ hits? for \u201cquick fox\u201d, \d+ ms", page)


@needs_browser
def test_what_goes_wrong_is_said(url: str, papers: str, tmp_path: Path) -> None:
    page = searched(url, tmp_path, {"in": papers, "q": "fox", "where": "{oops"})
    assert re.search(r'id="said"[^>]*class="bad">the filter is not JSON: ', page)
    page = searched(url, tmp_path, {"in": papers, "q": "fox", "where": '{"number": {"near": 1}}'})
    assert re.search(r'id="said"[^>]*class="bad">[^<]*near', page)


@needs_browser
def test_a_server_that_asks_for_a_key(tokenizer: Tokenizer, tmp_path: Path) -> None:
    create_key(tmp_path / "keys.json", "ann", ["search"])
    config = ServeConfig(collections=str(tmp_path / "c"), keys_file=str(tmp_path / "keys.json"))
    with serving(make_server(ServedEncoder(tokenizer), config)) as address:
        page = dom(f"{address}/ui", tmp_path)
    assert ">This server asks for an API key.<" in page
    assert re.search(r'<label id="locked">', page)


@needs_browser
def test_a_server_without_collections(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with serving(make_server(ServedEncoder(tokenizer))) as address:
        assert "this server keeps no collections; start it with --collections FOLDER" in dom(f"{address}/ui", tmp_path)


Acted = Callable[..., str]


@pytest.fixture
def acted(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Acted:
    """What becomes of the page when a reader has done something: JavaScript before its script, and after a while."""
    text, _ = page._page()

    def page_after(query: dict[str, str], *, first: str = "", later: str = "") -> str:
        begun = text.replace("<script>", f"<script>{first}</script><script>", 1)
        ended = begun.replace("</body>", f"<script>setTimeout(() => {{{later}}}, 3000)</script></body>")
        monkeypatch.setattr(page, "_page", lambda: (ended, "script-src 'unsafe-inline'"))
        return searched(url, tmp_path, query)

    return page_after


def said_in(page: str) -> str:
    (said,) = re.findall(r'<div id="said"[^>]*>(.*?)</div>', page, re.DOTALL)
    return html.unescape(said)


@needs_browser
@pytest.mark.parametrize(("k", "says"), [("500", "2 hits for \u201clazy\u201d"), ("0", "k: ")])
def test_odd_numbers_of_hits_do_not_lock_the_form(acted: Acted, papers: str, k: str, says: str) -> None:
    """A field that is out of sight and not valid would stop every search, without a word."""
    later = 'at("query").value = "lazy"; document.querySelector("form button").click()'
    shown = acted({"in": papers, "q": "fox", "k": k}, later=later)
    assert said_in(shown).startswith(says)
    assert 'aria-expanded="true"' in shown  # what an address sets can be seen


@needs_browser
def test_addresses_of_what_is_not_there(url: str, papers: str, tmp_path: Path) -> None:
    """Another collection is not searched in the place of one that is gone."""
    shown = searched(url, tmp_path, {"in": "gone", "q": "fox"})
    assert said_in(shown) == "There is no collection gone here."
    assert texts_of("article", shown) == []
    assert "for \u201cfox\u201d" in said_in(searched(url, tmp_path, {"in": papers, "q": "fox", "mode": "odd"}))


@needs_browser
def test_a_key_that_no_request_can_carry(acted: Acted) -> None:
    shown = acted({}, first='sessionStorage.setItem("key", "ключ")')
    assert "An API key has no blanks" in said_in(shown)
    assert '<label id="locked">' in shown  # another can be typed


@needs_browser
def test_a_browser_that_keeps_nothing(acted: Acted, papers: str) -> None:
    first = 'Object.defineProperty(window, "sessionStorage", { get() { throw new Error("SecurityError") } })'
    assert "for \u201cfox\u201d" in said_in(acted({"in": papers, "q": "fox"}, first=first))


@needs_browser
def test_a_server_that_is_gone_or_behind_something_else(acted: Acted, papers: str) -> None:
    gone = "setTimeout(() => { fetch = async () => { throw new TypeError() } }, 2000)"
    shown = acted({"in": papers, "q": "fox"}, first=gone, later="search()")
    assert said_in(shown) == "The server does not answer. Is it running?"
    other = 'setTimeout(() => { fetch = async () => new Response("<html>") }, 2000)'
    assert said_in(acted({"in": papers, "q": "fox"}, first=other, later="search()")).startswith("What answered is not")


@needs_browser
def test_more_like_a_hit_of_the_collection_that_it_is_of(url: str, acted: Acted, papers: str) -> None:
    """Also when another was chosen meanwhile, and not searched yet."""
    httpx.put(f"{url}/collections/others", timeout=START_S).raise_for_status()
    choose = 'at("query").value = ""; at("in").value = "others"; document.querySelector(".like").click()'
    shown = acted({"in": papers, "q": "quick fox"}, later=choose)
    assert re.match(r"1 hit like (fox|dog), ", said_in(shown))


@needs_browser
def test_back_returns_to_the_search_before(acted: Acted, papers: str) -> None:
    search = 'at("query").value = "lazy"; search()'
    like = 'document.querySelector(".like").click()'

    def after(*steps: str) -> str:
        nested = "".join(f"setTimeout(() => {{{step}}}, {700 * i});" for i, step in enumerate(steps))
        return said_in(acted({"in": papers, "q": "fox"}, later=nested))

    assert after(search).startswith("2 hits for \u201clazy\u201d")
    assert after(search, like).startswith("1 hit like ")
    assert after(search, like, "history.back()").startswith("2 hits for \u201clazy\u201d")
    assert after(search, like, "history.go(-2)").startswith("2 hits for \u201cfox\u201d")
