"""The client of chat models, against an endpoint that runs in the test."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from tests.chats import ChatModel, chat_model, end, piece
from tests.web import serving

from threefold.errors import DeadlineError, InputError, OfflineError, ThreefoldError, UnavailableError
from threefold.integrations.chat import Chat, Said

HELLO = [{"role": "user", "content": "hello"}]


def say(endpoint: type[ChatModel], **options: Any) -> Said:
    with Chat(endpoint.url, **options) as chat:
        return chat.say(HELLO)


def test_pieces_as_they_come_and_the_whole() -> None:
    heard: list[str] = []
    with (
        chat_model(piece(""), piece("Be"), piece(None), piece("es [1]"), *end(), b"data: [DONE]\n\n") as endpoint,
        Chat(endpoint.url, "bees", api_key="secret", temperature=0.0, max_tokens=50) as chat,
    ):
        said = chat.say(HELLO, heard.append)
    usage = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35}
    assert said == Said("Bees [1]", "stop", usage)
    assert heard == ["Be", "es [1]"]
    assert endpoint.asked == [
        {
            "path": "/v1/chat/completions",
            "key": "Bearer secret",
            "model": "bees",
            "messages": HELLO,
            "temperature": 0.0,
            "max_tokens": 50,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_what_was_not_given_is_not_said() -> None:
    with chat_model(piece("x"), *end()) as endpoint:
        say(endpoint, model="bees")
    (asked,) = endpoint.asked
    assert asked["key"] is None
    assert not {"temperature", "max_tokens"} & set(asked)


def test_comments_names_and_line_ends_of_events() -> None:
    last = b'data:{"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}'
    with chat_model(b": waiting\r\n\r\nevent: message\r\n" + last + b"\r\n\r\n") as endpoint:
        assert say(endpoint, model="bees") == Said("x", "stop", {})


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\u0085b\x0bc", "é\u200b💡"])
def test_only_line_feeds_and_carriage_returns_end_a_line(text: str) -> None:
    raw = json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False)
    with chat_model(b"\xef\xbb\xbfdata: " + raw.encode() + b"\r\r") as endpoint:
        assert say(endpoint, model="bees").text == text


def test_what_else_an_event_may_have() -> None:
    odd = b'data: {"error": null, "choices": [{"delta": null}], "usage": [NaN]}\n\n'
    with chat_model(odd, piece("x"), *end()) as endpoint:
        assert say(endpoint, model="bees").text == "x"


def test_the_last_word_is_the_end_whatever_comes_after_it() -> None:
    with chat_model(piece("x"), *end(), b"data: [DONE]\n\n", piece("y")) as endpoint:
        assert say(endpoint, model="bees").text == "x"
    with chat_model(b"data: [DONE]\n\n") as endpoint:
        assert say(endpoint, model="bees") == Said("", "stop", {})
    with chat_model(piece("x"), b"data: [DONE]\n\n") as endpoint:
        assert say(endpoint, model="bees") == Said("x", "stop", {})


def test_a_lone_surrogate_is_sent_as_a_replacement() -> None:
    with chat_model(piece("x"), *end()) as endpoint, Chat(endpoint.url, "bees") as chat:
        chat.say([{"role": "user", "content": "a\ud800b"}])
    assert endpoint.asked[0]["messages"][0]["content"] == "a\ufffdb"


def test_the_only_model_needs_no_name() -> None:
    with chat_model(piece("x"), *end()) as endpoint:
        say(endpoint)
    assert endpoint.asked[0]["model"] == "some-model"


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"data": [{"id": "b"}, {"id": "a"}]}, "has 2 models; name one: a, b"),
        ({"data": []}, "has 0 models; name one"),
        ({"models": []}, "is no list of models"),
        ([], "is no list of models"),
    ],
)
def test_several_models_want_a_name(models: Any, said: str) -> None:
    with chat_model(models=models) as endpoint, pytest.raises(InputError, match=said):
        say(endpoint)


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "answered 401: .*no such key"), (404, "answered 404: .*no such key.*end in /v1"), (500, "answered 500")],
)
def test_a_refusal_is_passed_on(status: int, said: str) -> None:
    with chat_model(status=status, body=b'{"error": "no such key"}') as endpoint, pytest.raises(InputError, match=said):
        say(endpoint, model="bees")
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    ("lines", "error", "said"),
    [
        ([piece("half")], UnavailableError, "in the middle of an answer"),
        ([piece("half"), {"error": {"message": "out of memory"}}], InputError, "out of memory"),
        ([b"data: {half\n\n"], InputError, "no JSON: .*half"),
        ([b"data: [1]\n\n"], InputError, "another format"),
        ([], InputError, "answered no stream: $"),
        ([b"<html>Welcome</html>"], InputError, "answered no stream: <html>Welcome"),
        ([b'{"choices": [{"message": {"content": "whole"}}]}'], InputError, "answered no stream: .*whole"),
        ([{"choices": [None]}], InputError, "another format"),
        ([{"choices": {"a": 1}}], InputError, "another format"),
        ([{"choices": [{"delta": "a"}]}], InputError, "another format"),
        ([{"choices": [{"delta": {"content": [{"type": "text"}]}}]}], InputError, "another format"),
        ([b"data: " + b"[" * 200_000 + b"\n\n"], InputError, "no JSON"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(lines: list[Any], error: type[ThreefoldError], said: str) -> None:
    with chat_model(*lines) as endpoint, pytest.raises(error, match=said):
        say(endpoint, model="bees")


def test_nobody_there() -> None:
    with serving(BaseHTTPRequestHandler) as address:
        pass
    with Chat(f"{address}/v1", "bees") as chat, pytest.raises(OfflineError, match="cannot be reached"):
        chat.say(HELLO)


def test_a_silent_endpoint_is_given_up() -> None:
    class Silent(ChatModel):
        def do_POST(self) -> None:
            time.sleep(1)

    with (
        serving(Silent) as address,
        Chat(f"{address}/v1", "bees", timeout_s=0.1) as chat,
        pytest.raises(DeadlineError, match=r"said nothing for 0\.1 s"),
    ):
        chat.say(HELLO)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "localhost:11434"}, "is not an address"),
        ({"url": "http://localhost", "max_tokens": 0}, "max_tokens must be at least 1; got 0"),
        ({"url": "http://localhost", "timeout_s": 0}, "timeout_s must be"),
        ({"url": "http://localhost", "api_key": "a b"}, "api_key has spaces"),
    ],
)
def test_wrong_settings(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Chat(**options)


@pytest.mark.peers
def test_the_endpoint_of_the_tests_speaks_as_openai_does() -> None:
    """The official client hears the same, and so the endpoint stands for one that people have."""
    openai = pytest.importorskip("openai")
    with chat_model(piece(""), piece("Be"), piece("es"), *end("length"), b"data: [DONE]\n\n") as endpoint:
        client = openai.OpenAI(base_url=endpoint.url, api_key="secret", max_retries=0)
        events = list(client.chat.completions.create(model="bees", messages=HELLO, stream=True))
        ours = say(endpoint, model="bees", api_key="secret")
    choices = [choice for event in events for choice in event.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == ours.text == "Bees"
    assert choices[-1].finish_reason == ours.finish == "length"
    assert events[-1].usage.total_tokens == ours.usage["total_tokens"] == 35
    theirs, our = endpoint.asked
    assert {name: our[name] for name in theirs} == theirs
