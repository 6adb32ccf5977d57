"""The client against a server on a socket: the same values as the encoder and the collection give."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.serve.fakes import ServedEncoder, make_server, serving

import threefold
from threefold.client import AsyncClient, Client
from threefold.collection import Collection
from threefold.config import Chunking
from threefold.errors import DeadlineError, InputError, OverloadedError, ServeError, UnavailableError
from threefold.remote import Ranked
from threefold.retrieve.stages import Diversify, Rerank
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer
from threefold.types import Document, Encoded, Hit

TEXTS = ["The quick brown fox", "搜索引擎把文档切成段落。", "a " * 200, "dog", "box", "fox"]
DOCUMENTS = [Document(str(i), text, metadata={"n": i}) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer) -> ServedEncoder:
    return ServedEncoder(tokenizer, name="fake-m3", max_tokens=64)


@pytest.fixture(scope="module")
def url(served: ServedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = ServeConfig(
        max_inputs=4, max_request_tokens=150, max_multi_tokens=100, collections=str(tmp_path_factory.mktemp("all"))
    )
    with serving(make_server(served, config)) as url:
        yield url


def assert_same(found: Encoded, expected: Encoded) -> None:
    assert found.dense is not None
    assert found.sparse is not None
    assert found.multi is not None
    assert expected.dense is not None
    assert expected.sparse is not None
    assert expected.multi is not None
    np.testing.assert_array_equal(found.dense, expected.dense)
    np.testing.assert_array_equal(found.sparse.indices, expected.sparse.indices)
    np.testing.assert_allclose(found.sparse.values, expected.sparse.values, atol=1e-6)
    np.testing.assert_array_equal(found.multi.rows, expected.multi.rows)
    np.testing.assert_array_equal(found.multi.offsets, expected.multi.offsets)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.truncated, expected.truncated)


def test_embed_is_what_the_encoder_says_however_it_is_split(url: str, served: ServedEncoder) -> None:
    with Client(url) as client:
        assert_same(client.embed(TEXTS, outputs=("dense", "sparse", "multi")), served.encode(TEXTS))
        parts = list(client.iter_embed(iter(TEXTS)))
        assert len(parts) > 1
        assert sum(map(len, parts)) == len(TEXTS)
        assert parts[0].sparse is None
        empty = client.embed([], outputs=("dense", "sparse", "multi"))
        assert len(empty) == 0
        assert client.served().vocab == served.card.vocab


def test_async_is_the_same(url: str, served: ServedEncoder) -> None:
    async def both() -> None:
        async with AsyncClient(url) as client:
            found, ranks = await asyncio.gather(
                client.embed(TEXTS, outputs=("dense", "sparse", "multi")), client.rerank("a fox", ["dog", "a fox"])
            )
            assert_same(found, served.encode(TEXTS))
            assert ranks[0].index == 1
            assert [len(part) async for part in client.iter_embed(["a"])] == [1]
            assert len(await client.embed([])) == 0

    asyncio.run(both())


def test_parts_with_more_tokens_than_characters_are_halved(url: str, served: ServedEncoder) -> None:
    """Four texts of 20 characters and 63 tokens: by their characters one request, which has 252 of the 100 tokens."""
    texts = [f"{'½' * 19}{last}" for last in "½⅓¼⅔"]

    async def by_await() -> Encoded:
        async with AsyncClient(url) as client:
            return await client.embed(texts, outputs=("dense", "sparse", "multi"))

    with Client(url) as client:
        assert sum(served.tokenizer.count(texts)) > 2 * client.served().max_multi_tokens
        assert_same(client.embed(texts, outputs=("dense", "sparse", "multi")), served.encode(texts))
        assert len(list(client.iter_embed(texts))) > 1
    assert_same(asyncio.run(by_await()), served.encode(texts))


def test_rerank(url: str) -> None:
    with Client(url) as client:
        ranks = client.rerank("a fox", ["dog", "a fox"])
        assert [rank.index for rank in ranks] == [1, 0]
        assert ranks[0].score > ranks[1].score
        assert len(client.rerank("a fox", ["dog", "a fox"], k=1)) == 1


def test_lone_surrogates_are_sent_as_the_library_reads_them(url: str, served: ServedEncoder) -> None:
    texts = ["a \ud800 fox"]
    with Client(url) as client:
        assert_same(client.embed(texts, outputs=("dense", "sparse", "multi")), served.encode(texts))
        assert len(client.rerank("fox \udfff", texts)) == 1


def _place(hit: Hit) -> tuple[str, int, int] | None:
    return (hit.quote.text, hit.quote.start, hit.quote.end) if hit.quote else None


def test_collections_are_those_of_the_library(url: str, served: ServedEncoder, tmp_path: Path) -> None:
    with Client(url) as client, Collection(tmp_path / "same", served, chunking=Chunking(32)) as same:
        same.add(DOCUMENTS)
        there = client.collection("papers")
        there.create(chunking={"max_tokens": 32})
        assert client.collections() == ["papers"]
        said: list[Any] = []
        report = there.add((document for document in DOCUMENTS), progress=said.append)
        assert report["added"] == len(DOCUMENTS)
        for options in ({"k": 3}, {"why": True}, {"quote": True}, {"mode": "dense"}, {"rerank": Rerank("multi")}):
            found = there.search("a quick fox", **options)
            expected = same.search("a quick fox", **options)
            assert [hit.id for hit in found] == [hit.id for hit in expected]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
            assert found[0].chunk == expected[0].chunk
            assert (found[0].why is None) == (expected[0].why is None)
            assert [_place(hit) for hit in found] == [_place(hit) for hit in expected]
        hit, other = there.search("a fox", k=1, why=True)[0], same.search("a fox", k=1, why=True)[0]
        assert hit.why is not None
        assert other.why is not None
        assert [term.term for term in hit.why.terms] == [term.term for term in other.why.terms]
        assert hit.why.tokens[0].query_span == other.why.tokens[0].query_span
        liked = there.recommend(["1"], ["2"], k=2, diversify=Diversify(0.5))
        expected = same.recommend(["1"], ["2"], k=2, diversify=Diversify(0.5))
        assert [hit.id for hit in liked] == [hit.id for hit in expected]
        assert [hit.score for hit in liked] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert there.delete(["3"]) == 1
        assert there.delete(where={"n": 4}) == 1
        odd = Document("a\0\udfff", "a fox", metadata={"k": "\ud800"})
        assert there.add([odd])["added"] == same.add(odd).added
        assert (
            there.search("a fox", where={"k": "\ud800"})[0].chunk
            == same.search("a fox", where={"k": "\ud800"})[0].chunk
        )
        assert there.delete([odd.id]) == 1
        assert there.info()["documents"] == len(DOCUMENTS) - 2
        assert there.add([{"id": "plain", "text": "a fox"}])["added"] == 1
        there.drop()
        with pytest.raises(InputError, match="there is no collection 'papers'"):
            there.info()
        with pytest.raises(InputError, match="there is no collection 'papers'"):
            there.add(DOCUMENTS)


def test_async_collections_are_the_same(url: str) -> None:
    async def stream() -> AsyncIterator[Document]:
        for document in DOCUMENTS:
            yield document

    async def life() -> None:
        async with AsyncClient(url) as client:
            there = client.collection("letters")
            assert "letters" not in await client.collections()
            await there.create(chunking={"max_tokens": 32})
            assert "letters" in await client.collections()
            said: list[Any] = []
            assert (await there.add(stream(), progress=said.append))["added"] == len(DOCUMENTS)
            assert (await there.add(DOCUMENTS))["unchanged"] == len(DOCUMENTS)
            hits = await there.search("a quick fox", k=3)
            assert hits == await client.search("letters", "a quick fox", k=3)
            assert len(await there.recommend(["1"], k=2)) == 2
            assert await there.delete(["3"]) == 1
            assert (await there.info())["documents"] == len(DOCUMENTS) - 1
            await there.drop()
            with pytest.raises(InputError, match="there is no collection 'letters'"):
                await there.add(stream())

    asyncio.run(life())


def test_usage_of_a_server_that_keeps_none_is_an_error(url: str) -> None:
    with Client(url) as client, pytest.raises(InputError, match="keeps no usage"):
        client.usage("2026-01-01")


def test_errors_are_those_of_the_library(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(InputError, match=r"input 0 has \d+ tokens, the limit is 64"):
            client.embed(["a b " * 100], truncate="none")
        with pytest.raises(InputError, match="outputs must be some of"):
            client.embed(["a"], outputs=("colbert",))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="expected texts, got one text"):
            client.embed("a")


# ---- retries, without a server -----------------------------------------------------------------------------


class Scripted:
    """Answers in order; what is slept and sent is written down."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.slept: list[float] = []
        self.sent: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request.content)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> Client:
        client = Client("http://server", transport=httpx.MockTransport(self), **options)
        client._sleep = self.slept.append
        return client

    def async_client(self) -> AsyncClient:
        client = AsyncClient("http://server", transport=httpx.MockTransport(self))

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        client._sleep = sleep
        return client


def busy(status: int = 429, after: str | None = "7") -> httpx.Response:
    body = {"error": {"message": "full"}}
    return httpx.Response(status, json=body, headers=[(b"retry-after", after.encode("latin-1"))] if after else [])


FINE = {"results": [{"index": 0, "relevance_score": 0.5}]}


def test_the_wait_is_what_the_server_says() -> None:
    script = Scripted(busy(), busy(503, "2"), httpx.Response(200, json=FINE))
    with script.client() as client:
        assert client.rerank("a", ["b"]) == [Ranked(0, 0.5)]
    assert script.slept == [7.0, 2.0]


def test_a_broken_connection_is_tried_again() -> None:
    script = Scripted(httpx.ConnectError("refused"), httpx.ReadError("broke"), httpx.Response(200, json=FINE))
    with script.client() as client:
        client.rerank("a", ["b"])
    assert script.slept == [0.5, 1.0]


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (httpx.ReadTimeout("slow"), DeadlineError, "within timeout_s=7 "),  # it may still be at work
        (httpx.WriteTimeout("slow"), DeadlineError, "within timeout_s=7 "),
        (httpx.LocalProtocolError("a header"), UnavailableError, "cannot be reached: a header"),
    ],
)
def test_what_would_be_worse_or_the_same_again_is_not_tried_again(
    broken: Exception, error: type[Exception], message: str
) -> None:
    script = Scripted(broken)
    with script.client(timeout_s=7) as client, pytest.raises(error, match=message):
        client.rerank("a", ["b"])
    assert script.slept == []


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "localhost:8000", "", "http://", "ftp://server", "http://a:b"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_is_not_an_address_is_refused_at_once(kind: type[Client | AsyncClient], address: str) -> None:
    with pytest.raises(InputError, match=r"base_url '.*' is not an address"):
        kind(address)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"timeout_s": -1}, "timeout_s must be a number of seconds above 0; got -1"),
        ({"timeout_s": float("nan")}, "timeout_s must be a number of seconds above 0; got nan"),
        ({"timeout_s": float("inf")}, "timeout_s must be a number of seconds above 0; got inf"),
        ({"retries": -1}, "retries and max_wait_s must be at least 0; got -1 and 120"),
        ({"max_wait_s": float("nan")}, "at least 0; got 5 and nan"),
        ({"api_key": "ключ"}, "no header can carry it"),
        ({"api_key": "two words\n"}, "no header can carry it"),
    ],
)
def test_what_no_request_could_be_sent_with_is_refused_at_once(
    kind: type[Client | AsyncClient], told: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kind("http://127.0.0.1:8000", **told)


def test_a_closed_client_says_so(url: str) -> None:
    client = Client(url)
    client.close()
    with pytest.raises(InputError, match=r"this client is closed\. Make another"):
        client.embed(["fox"])
    with pytest.raises(InputError, match="this client is closed"):
        client.collection("some").add([Document("1", "fox")])

    async def ask() -> None:
        async with AsyncClient(url) as later:
            pass
        await later.embed(["fox"])

    with pytest.raises(InputError, match="this client is closed"):
        asyncio.run(ask())


@pytest.mark.parametrize("answer", ["<html>hello", "", "[]", '{"results": [{}]}', '{"results": 5}'])
def test_a_good_status_with_something_else_says_what_came(answer: str) -> None:
    script = Scripted(httpx.Response(200, text=answer), httpx.Response(200, text=answer or "5"))
    with script.client() as client:
        with pytest.raises(ServeError, match="not one of `threefold serve`") as error:
            client.rerank("a", ["b"])
        assert repr(answer) in str(error.value)
        with pytest.raises(ServeError, match="not one of `threefold serve`"):
            client.collection("papers").add([])
    assert script.slept == []


ONE = {"id": "fox", "text": "a fox"}
ADDED = '{"progress": {"documents": 1}}\n{"report": {"added": 1}}\n'


def test_adding_waits_as_the_server_says_where_the_documents_are_a_list() -> None:
    script = Scripted(busy(), httpx.ConnectError("refused"), httpx.Response(200, text=ADDED))
    with script.client() as client:
        assert client.collection("papers").add([ONE, ONE]) == {"added": 1}
    assert script.slept == [7.0, 1.0]
    assert script.sent[0].count(b"a fox") == 2
    assert script.sent == [script.sent[0]] * 3


def test_adding_from_a_generator_is_not_repeated_and_says_when_to_come_back() -> None:
    script = Scripted(busy())
    with script.client() as client, pytest.raises(OverloadedError, match="full") as error:
        client.collection("papers").add(one for one in [ONE])
    assert error.value.retry_after_s == 7.0
    assert script.slept == []


def test_async_adding_is_the_same() -> None:
    async def life() -> None:
        script = Scripted(busy(), httpx.Response(200, text=ADDED), busy())
        async with script.async_client() as client:
            assert await client.collection("papers").add([ONE]) == {"added": 1}
            with pytest.raises(OverloadedError, match="full") as error:
                await client.collection("papers").add(one for one in [ONE])
        assert error.value.retry_after_s == 7.0
        assert script.slept == [7.0]

    asyncio.run(life())


CARD = {
    "card": {"name": "m", "dense_dim": 2, "multi_dim": 2, "vocab": 9},
    "limits": {"max_inputs": 8, "max_input_tokens": 9, "max_request_tokens": 99, "max_multi_tokens": 99},
}


def test_halves_come_in_order_and_one_text_that_is_too_large_is_an_error() -> None:
    too_large = [
        httpx.Response(413, text="too large") for _ in range(3)
    ]  # of 3 texts, of the first, of the first again
    script = Scripted(httpx.Response(200, json=CARD), too_large[0], too_large[1])
    with script.client() as client, pytest.raises(InputError, match="too large"):
        client.embed(["a", "b", "c"])
    assert [json.loads(body)["input"] for body in script.sent[1:]] == [["a", "b", "c"], ["a"]]
    assert script.slept == []


def test_what_is_too_large_is_known_by_its_code_and_not_by_its_words() -> None:
    def refused(**error: Any) -> httpx.Response:
        return httpx.Response(400, json={"error": {"type": "invalid_request_error", "param": None, **error}})

    fine = {"embedding": "AACAPwAAAAA=", "tokens": 3, "truncated": False}
    answers = [httpx.Response(200, json={"data": [fine]}) for _ in range(2)]
    too_large = refused(message="zu viel", code="request_too_large")
    script = Scripted(httpx.Response(200, json=CARD), too_large, *answers)
    with script.client() as client:
        assert len(client.embed(["a", "b"])) == 2
    assert [json.loads(body)["input"] for body in script.sent[1:]] == [["a", "b"], ["a"], ["b"]]
    other = refused(message="Send less at once", code="invalid_request_error")
    script = Scripted(httpx.Response(200, json=CARD), other)
    with script.client() as client, pytest.raises(InputError, match="Send less at once"):
        client.embed(["a", "b"])
    assert len(script.sent) == 2


@pytest.mark.parametrize(
    "line",
    [
        '"error"', '{"error": "x"}', '{"error": {"message": "m"}}', '{"error": {"status": "x"}}', '{"report": 5}',
        '{"error": {"status": 1e999}}', '{"progress": 5}', "{}", '{"other": {}}', "null", "<html>",
    ],
)  # fmt: skip
def test_a_line_that_is_none_of_ours_says_what_came(line: str) -> None:
    script = Scripted(httpx.Response(200, text=line))
    with script.client() as client, pytest.raises(ServeError, match="not one of `threefold serve`"):
        client.collection("papers").add([])


def test_one_id_is_one_document_and_not_its_characters() -> None:
    script = Scripted(httpx.Response(200, json={"deleted_chunks": 1}))
    with script.client() as client:
        assert client.collection("papers").delete("abc") == 1
    assert json.loads(script.sent[0])["ids"] == ["abc"]


def test_one_text_to_rerank_and_what_is_no_text_are_refused() -> None:
    script = Scripted(httpx.Response(200, json=CARD))
    with script.client() as client:
        with pytest.raises(InputError, match="got one text"):
            client.rerank("a", "abc")
        with pytest.raises(InputError, match="text 1 must be a string; got int"):
            client.embed(["a", 1])  # type: ignore[list-item]
    assert len(script.sent) == 1


@pytest.mark.parametrize("name", ["", ".", "..", None])
def test_a_name_that_leads_elsewhere_is_refused(name: Any) -> None:
    script = Scripted()
    with script.client() as client, pytest.raises(InputError, match="is not a name for a collection"):
        client.collection(name).info()
    assert script.sent == []


def _deep() -> dict[str, Any]:
    deep: dict[str, Any] = {}
    for _ in range(3000):
        deep = {"not": deep}
    return deep


@pytest.mark.parametrize(
    "value", [float("nan"), {1, 2}, np.int64(2), b"a", _deep()], ids=["nan", "set", "numpy", "bytes", "deep"]
)
def test_what_json_cannot_carry_is_refused_before_it_is_sent(value: Any) -> None:
    script = Scripted()
    with script.client() as client:
        papers = client.collection("papers")
        with pytest.raises(InputError, match="has what JSON cannot carry"):
            papers.search("a", where={"n": value})
        with pytest.raises(InputError, match="has what JSON cannot carry"):
            papers.delete(where={"n": value})
    assert script.sent == []


def test_a_document_that_cannot_be_sent_is_named() -> None:
    with Scripted().client() as client:
        papers = client.collection("papers")
        for metadata in ({"when": {1, 2}}, _deep()):
            with pytest.raises(InputError, match="document 'fox' has what JSON cannot carry"):
                papers.add([Document("fox", "a fox", metadata=metadata)])
        with pytest.raises(InputError, match="a document is a Document or a mapping with its fields; got str"):
            papers.add(["a fox"])  # type: ignore[list-item]


def test_fewer_answers_than_texts_are_an_error() -> None:
    fine = {"embedding": "AACAPwAAAAA=", "tokens": 3, "truncated": False}
    script = Scripted(httpx.Response(200, json=CARD), httpx.Response(200, json={"data": [fine]}))
    with script.client() as client, pytest.raises(ServeError, match="not one of `threefold serve`"):
        client.embed(["a", "b"])


@pytest.mark.parametrize("k", [0, -1])
def test_a_number_of_texts_below_one_is_refused(k: int) -> None:
    script = Scripted()
    with script.client() as client, pytest.raises(InputError, match=f"k must be at least 1; got {k}"):
        client.rerank("a", ["b"], k=k)
    assert script.sent == []


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (busy(429, "²"), OverloadedError, "full"),
        (httpx.Response(400, json={"error": None}), InputError, "the server answered 400"),
        (busy(429, "500"), OverloadedError, "full"),  # longer than the client waits
        (busy(429, None), OverloadedError, "full"),  # the server does not say when
        (busy(504, None), DeadlineError, "full"),
        (busy(500, None), ServeError, "full"),
        (busy(400, None), InputError, "full"),
        (httpx.Response(502, text="<html>bad gateway"), ServeError, "<html>bad gateway"),
        (httpx.Response(413), InputError, "the server answered 413"),
        (httpx.Response(422, json={"error": "flat", "error_type": "Validation"}), InputError, "flat"),
        (httpx.Response(400, json={"message": "cohere", "id": "x"}), InputError, "cohere"),
    ],
)
def test_what_cannot_be_repeated_is_raised(answer: httpx.Response, error: type[Exception], message: str) -> None:
    script = Scripted(answer)
    with script.client() as client, pytest.raises(error, match=message):
        client.rerank("a", ["b"])
    assert script.slept == []


def test_attempts_are_bounded() -> None:
    script = Scripted(*[httpx.ConnectError("refused")] * 3)
    with script.client(retries=2) as client, pytest.raises(UnavailableError, match="cannot be reached: refused"):
        client.rerank("a", ["b"])
    assert script.slept == [0.5, 1.0]


def test_the_public_names() -> None:
    assert threefold.Client is Client
    assert threefold.AsyncClient is AsyncClient
