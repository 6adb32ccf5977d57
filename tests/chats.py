"""A chat model that runs in the test: an endpoint that streams, as OpenAI's contract has it, what the test says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.web import serving

#: https://platform.openai.com/docs/api-reference/chat-streaming: a piece of an answer, and its end.
Event = dict[str, Any]


def piece(text: str | None) -> Event:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "usage": None}


def end(reason: str = "stop") -> list[Event]:
    usage = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": None}
    return [last, {"choices": [], "usage": usage}]


class ChatModel(BaseHTTPRequestHandler):
    """Says `lines`, each an event or bytes as they are; or answers `status` with `body`."""

    url: str
    asked: list[dict[str, Any]]
    lines: list[Event | bytes]
    status = 200
    body = b""
    models: Any = {"data": [{"id": "some-model"}]}

    def do_GET(self) -> None:
        self._whole(200, json.dumps(self.models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        if self.status != 200:
            return self._whole(self.status, self.body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for line in self.lines:
            raw = line if isinstance(line, bytes) else b"data: " + json.dumps(line).encode() + b"\n\n"
            self.wfile.write(raw)
            self.wfile.flush()

    def log_message(self, *_: Any) -> None: ...

    def _whole(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def chat_model(*lines: Event | bytes, **settings: Any) -> Iterator[type[ChatModel]]:
    """An endpoint that says these lines to whoever asks."""
    handler: Any = type("OneChatModel", (ChatModel,), {"lines": list(lines), "asked": [], **settings})
    with serving(handler) as address:
        handler.url = f"{address}/v1"
        yield handler
