from __future__ import annotations

import pytest
from tests.chats import chat_model, end, piece
from tests.fakes import FakeEncoder

from threefold.collection import Collection
from threefold.errors import InputError
from threefold.integrations.ask import RULES, Answer, ask, cited, messages
from threefold.integrations.chat import Chat
from threefold.opening import manifest_for
from threefold.store.memory import MemoryStore
from threefold.types import Document

DOCUMENTS = [
    Document("fox", "The quick brown fox jumps over the lazy dog.", title="Foxes"),
    Document("wetter", "今天天气很好。我们去公园散步吧！"),
    Document("head", "How is the sparse head trained? From one forward pass."),
]


@pytest.fixture
def papers(encoder: FakeEncoder) -> Collection:
    collection = Collection.over(MemoryStore(manifest_for(encoder)), encoder)
    collection.add(DOCUMENTS)
    return collection


def answered(papers: Collection, said: str, question: str = "quick fox", **options: object) -> Answer:
    with chat_model(piece(said), *end()) as endpoint, Chat(endpoint.url, "bees") as chat:
        return ask(papers, question, chat, **options)  # type: ignore[arg-type]


def test_the_model_gets_the_passages_and_its_numbers_are_read_back(papers: Collection) -> None:
    heard: list[str] = []
    with chat_model(piece("It jumps [1]."), *end()) as endpoint, Chat(endpoint.url, "bees") as chat:
        answer = ask(papers, "quick fox", chat, k=2, on_text=heard.append)
    system, user = endpoint.asked[0]["messages"]
    assert system == {"role": "system", "content": RULES}
    assert user["content"].startswith(
        "Passages:\n\n[1] Foxes (fox)\nThe quick brown fox jumps over the lazy dog.\n\n[2] "
    )
    assert user["content"].endswith("\n\nQuestion: quick fox")
    assert (answer.text, answer.cited, answer.unknown, answer.left_out) == ("It jumps [1].", (1,), (), 0)
    assert [hit.chunk.document_id for hit in answer.sources] == ["fox"]
    assert len(answer.passages) == 2
    assert heard == ["It jumps [1]."]
    said = answer.to_dict()
    assert said["usage"]["total_tokens"] == 35
    assert (said["finish"], said["cited"]) == ("stop", [1])
    assert said["passages"][0]["document_id"] == "fox"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("A [1]. B [2][3].", [1, 2, 3]),
        ("A [1, 3; 2].", [1, 3, 2]),
        ("A [2-4], B [ 5 – 6 ].", [2, 3, 4, 5, 6]),
        ("蜜蜂【1】【2†source】【3、4】", [1, 2, 3, 4]),
        ("In [1999-12345] and x[i] and [a1] [].", []),
        ("[9-2] [1-4000]", [9, 2, 1, 4000]),
        ("［1］ [2—3] " + "[1†" * 30_000, [1, 2, 3]),
    ],
)
def test_how_models_cite(text: str, numbers: list[int]) -> None:
    assert list(cited(text)) == numbers


def test_numbers_that_no_passage_has_are_told_apart(papers: Collection) -> None:
    answer = answered(papers, "A [7]. B [2]. C [2][0].", k=2)
    assert (answer.cited, answer.unknown) == ((2,), (7, 0))
    assert answer.sources == [answer.passages[1]]


def test_passages_that_do_not_fit_are_left_out_and_counted(papers: Collection) -> None:
    whole = answered(papers, "x", k=3)
    lengths = [
        int(papers.encoder.tokenizer.count([message["content"]])[0])
        for message in (messages("", [hit])[1] for hit in whole.passages)
    ]
    few = answered(papers, "x", k=3, passage_tokens=min(lengths))
    assert (len(whole.passages), whole.left_out) == (3, 0)
    assert 0 < len(few.passages) < 3
    assert few.left_out == 3 - len(few.passages)
    with pytest.raises(InputError, match=r"passage_tokens: the shortest passage has \d+ tokens; got 2"):
        answered(papers, "x", passage_tokens=2)


def test_where_nothing_is_found_the_model_is_not_asked(papers: Collection) -> None:
    with chat_model() as endpoint, Chat(endpoint.url, "bees") as chat:
        answer = ask(papers, "fox", chat, where={"language": "de"})
    assert answer == Answer("", (), (), (), 0, "", {})
    assert endpoint.asked == []


def test_a_search_as_the_caller_wants_it(papers: Collection) -> None:
    answer = answered(papers, "x", where={"document_id": "head"}, mode="sparse", quote=True)
    assert [hit.chunk.document_id for hit in answer.passages] == ["head"]
    assert answer.passages[0].quote is not None
