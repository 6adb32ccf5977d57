"""A chat model behind an OpenAI-compatible endpoint: Ollama, llama.cpp, vLLM, LM Studio, OpenAI and others.

    POST {url}/chat/completions   {"model": ..., "messages": [...], "stream": true}

What is said leaves this process, to the address that the caller gives and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from threefold.characters import clean_value
from threefold.errors import DeadlineError, InputError, OfflineError, UnavailableError
from threefold.integrations.web import Connected, connection

#: Seconds without a word after which an endpoint is given up. A large model on a CPU reads its passages for minutes.
PATIENCE_S: Final = 300.0
_ENDS: Final = re.compile(rb"\r\n|\r|\n")
#: Characters of a foreign error that are passed on.
SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class Said:
    """What a chat model answered.

    finish  why it ended: "stop", or "length" where the endpoint cut it
    usage   tokens, as the endpoint counts them; empty where it does not say
    """

    text: str
    finish: str
    usage: Mapping[str, Any]


class Chat(Connected):
    """Messages in, text out. A context manager; `close` ends the connections.

    url          up to and without `/chat/completions`, such as http://localhost:11434/v1
    model        the model's name there; None: the only one that the endpoint has
    api_key      sent as a bearer token; None: no header
    temperature  None: what the endpoint does by itself (some models accept nothing else)
    max_tokens   of an answer; None: what the endpoint does by itself
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1; got {max_tokens}")
        self._client = connection(url, api_key, timeout_s, extra="client", purpose="a chat model")
        given = {"temperature": temperature, "max_tokens": max_tokens}
        self._settings = {name: value for name, value in given.items() if value is not None}
        self._model = model

    @property
    def model(self) -> str:
        """The model's name; asks the endpoint for it where none was given."""
        if self._model is None:
            self._model = self._only_model()
        return self._model

    def say(self, messages: Sequence[Mapping[str, str]], on_text: Callable[[str], None] | None = None) -> Said:
        """The answer to a conversation; `on_text` gets its pieces as they come."""
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), **self._settings}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        pieces: list[str] = []
        finish, usage = "", dict[str, Any]()
        for event in self._events(clean_value(body)):
            usage = event["usage"] or usage
            finish = finish or ("stop" if "done" in event else "")  # some endpoints say that it is done, and not why
            for choice in event["choices"]:  # the last event has none, only the usage
                piece = (choice.get("delta") or {}).get("content") or ""
                finish = str(choice.get("finish_reason") or finish)
                if piece:
                    pieces.append(piece)
                    if on_text is not None:
                        on_text(piece)
        if not finish:
            raise UnavailableError(f"{self._client.base_url} ended in the middle of an answer. Ask again")
        return Said("".join(pieces), finish, usage)

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer. (Server-sent events: https://html.spec.whatwg.org, 9.2.6.)"""
        other, streams = "", False
        with self._our_errors(), self._client.stream("POST", "chat/completions", json=body) as response:
            self._check(response)
            for line in _lines(response.iter_bytes()):
                name, _, data = line.partition(":")
                if name != "data":
                    other = (other + line)[:SHOWN]
                    continue
                if data.strip() == "[DONE]":
                    yield {"choices": [], "usage": None, "done": True}
                    return
                streams = True
                yield self._event(data)
        if not streams:
            raise InputError(f"{self._client.base_url} answered no stream: {other}")

    def _event(self, data: str) -> dict[str, Any]:
        """`choices` and `usage` of an event, checked."""
        try:
            event = json.loads(data, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self._client.base_url} answered no JSON: {data[:SHOWN]}") from error
        if isinstance(event, dict) and event.get("error"):  # after the status was sent, this is how endpoints fail
            raise InputError(f"{self._client.base_url} failed in the middle of an answer: {data[:SHOWN]}")
        choices = event.get("choices") or [] if isinstance(event, dict) else None
        if not isinstance(choices, list) or not all(map(_is_choice, choices)):
            raise InputError(f"{self._client.base_url} answered in another format: {data[:SHOWN]}")
        usage = event.get("usage")
        return {"choices": choices, "usage": usage if isinstance(usage, dict) else None}

    def _only_model(self) -> str:
        with self._our_errors():
            response = self._client.get("models")
            self._check(response)
            try:
                names = [str(one["id"]) for one in response.json()["data"]]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self._client.base_url}models is no list of models: {response.text[:SHOWN]}"
                ) from error
        if len(names) != 1:
            raise InputError(
                f"{self._client.base_url} has {len(names)} models; name one"
                + (f": {', '.join(sorted(names)[:20])}" if names else "")
            )
        return names[0]

    def _check(self, response: Any) -> None:
        if not response.is_success:
            response.read()
            hint = ". Does the address end in /v1?" if response.status_code == 404 else ""
            if "location" in response.headers:
                hint = f" and points to {response.headers['location']}"
            raise InputError(f"{response.url} answered {response.status_code}: {response.text[:SHOWN]}{hint}")

    @contextmanager
    def _our_errors(self) -> Iterator[None]:
        """Errors of the connection become ours. Nothing is tried again: whoever waits for an answer is there."""
        import httpx

        try:
            yield
        except httpx.TimeoutException as error:
            raise DeadlineError(
                f"{self._client.base_url} said nothing for {self._client.timeout.read:g} s; is it still working?"
            ) from error
        except httpx.DecodingError as error:
            raise InputError(f"{self._client.base_url} gave an answer that cannot be read: {error}") from error
        except httpx.HTTPError as error:
            raise OfflineError(f"{self._client.base_url} cannot be reached: {error}") from error


def _is_choice(choice: Any) -> bool:
    """Whether it is a choice of a streamed answer: a table whose `delta` has text or nothing."""
    delta = choice.get("delta") or {} if isinstance(choice, dict) else None
    return isinstance(delta, dict) and isinstance(delta.get("content") or "", str)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a stream of events: UTF-8, whatever the header says, and ended by CR, LF or both. Unicode has more ends
    of lines, which may stand in a text."""
    rest = b""
    for chunk in chunks:
        *whole, rest = _ENDS.split(rest + chunk)
        yield from (line.decode("utf-8", "replace").removeprefix("\ufeff") for line in whole)
    yield rest.decode("utf-8", "replace").removeprefix("\ufeff")
