"""The log of a server: one line per request, as text or JSON. Never a text, a query, a key or a body."""

from __future__ import annotations

import json
import logging
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

access = logging.getLogger("threefold.serve.access")

#: Where a record carries the facts of a request.
FACTS = "threefold_facts"


def log_request(facts: dict[str, Any]) -> None:
    """One line about one request."""
    access.info("%s %s %s", facts["method"], facts["route"], facts["status"], extra={FACTS: facts})


def format_of(file: Path | None, environment: Mapping[str, str], flag: str | None) -> str:
    """The format that is asked for, of settings which may be wrong otherwise; empty: none is."""
    given = flag or environment.get("THREEFOLD_SERVE_LOG_FORMAT", "")
    if given or file is None:
        return given
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        return str(table.get("serve", table).get("log_format", ""))
    except (OSError, ValueError, AttributeError):  # who reads the settings says what is wrong
        return ""


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Lines(logging.Formatter):
    """For people: time, level, message, facts."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        facts = {k: v for k, v in getattr(record, FACTS, {}).items() if k not in ("method", "route", "status")}
        return super().format(record) + "".join(f" {name}={value}" for name, value in facts.items())


def configure(how: Literal["text", "json"]) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if how == "json" else Lines())
    for name in ("threefold", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
