"""Every error as the clients of each dialect expect it: status, body, headers.

    exception ─► Problem ─► body of OpenAI, TEI, Cohere, vLLM, Ollama

The bodies are exact: `code` is a string for OpenAI and a number for vLLM; TEI names its own kinds; Cohere has a
message and an id; Ollama has a message alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
from starlette.responses import PlainTextResponse, Response

from threefold.errors import (
    DeadlineError,
    InputError,
    InputFailedError,
    MissingHeadError,
    ModelMismatchError,
    OverloadedError,
    ServeError,
    StoreError,
    StoreLockedError,
    ThreefoldError,
    UnavailableError,
)
from threefold.serve.models import TooLongError

Dialect = Literal["openai", "tei", "cohere", "vllm", "ollama"]
TeiKind = Literal["Unhealthy", "Backend", "Overloaded", "Tokenizer", "Empty", "Validation"]


#: The code of a request with too many texts, tokens or bytes: it may be sent as several. Our client goes by it.
TOO_LARGE = "request_too_large"


class RequestError(InputError):
    """A request that cannot be taken as it is.

    param  the field that is to blame
    code   a word for programs; None: the usual one of the status
    tei    what TEI calls it
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        tei: TeiKind = "Validation",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.tei = tei


class CreditError(ServeError):
    """The key has spent what it was granted."""


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


#: Characters of a message, and of what a request calls its parts: names and ids may be megabytes.
LONGEST = 2_000


def clipped(text: str) -> str:
    """A message for a client, who knows what it has sent."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@dataclass(frozen=True, slots=True)
class Problem:
    """An error in no dialect.

    cuttable  a text is too long; the dialect knows the field that lets it be cut
    """

    status: int
    message: str
    tei: TeiKind
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    cuttable: bool = False


def problem_of(error: BaseException) -> Problem:
    """What the client is told. Of errors that threefold did not raise on purpose it learns nothing."""
    if isinstance(error, RequestError):
        return Problem(error.status, str(error), error.tei, error.code, error.param)
    if isinstance(error, TooLongError):
        return Problem(400, str(error), "Validation", cuttable=True)
    if isinstance(error, MissingHeadError):
        return Problem(400, str(error), "Backend")
    if isinstance(error, InputError):
        return Problem(400, str(error), "Validation")
    if isinstance(error, OverloadedError):
        return Problem(429, str(error), "Overloaded", retry_after_s=error.retry_after_s)
    if isinstance(error, UnavailableError):
        return Problem(503, str(error), "Unhealthy", retry_after_s=error.retry_after_s)
    if isinstance(error, CreditError):
        return Problem(402, str(error), "Overloaded")
    if isinstance(error, DeadlineError):
        return Problem(504, str(error), "Backend")
    if isinstance(error, InputFailedError):
        return Problem(500, str(error), "Backend")
    if isinstance(error, StoreLockedError | ModelMismatchError):
        return Problem(409, str(error), "Backend", "conflict")
    if isinstance(error, StoreError):
        return Problem(500, str(error), "Backend")
    message = "the request failed" if isinstance(error, ThreefoldError) else "an unexpected error; see the server's log"
    return Problem(500, message, "Backend")


def respond(problem: Problem, dialect: Dialect, request_id: str) -> Response:
    """The whole response."""
    if problem.cuttable:
        problem = replace(problem, message=f"{problem.message}. Split it, or send {_CUT[dialect]} to cut it")
    param = problem.param and clipped(problem.param)
    problem = replace(problem, message=clipped(problem.message), param=param)
    response = _BODIES[dialect](problem, request_id)
    if problem.retry_after_s is not None:
        response.headers["retry-after"] = str(math.ceil(problem.retry_after_s))
    return response


# ---- one function per dialect ------------------------------------------------------------------------------

#: Status -> (type, code) of OpenAI.
_OPENAI = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    403: ("invalid_request_error", "insufficient_permissions"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "timeout"),
    409: ("invalid_request_error", "conflict"),
    413: ("invalid_request_error", TOO_LARGE),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}

#: Status -> type of vLLM.
_VLLM = {
    401: "AuthenticationError",
    402: "PaymentRequiredError",
    404: "NotFoundError",
    429: "TooManyRequestsError",
    503: "ServiceUnavailableError",
}

#: The field of each dialect that lets a long text be cut.
_CUT: dict[Dialect, str] = {
    "openai": 'truncate="end"',
    "tei": '"truncate": true',
    "cohere": 'truncate="END"',
    "vllm": '"truncate_prompt_tokens": -1',
    "ollama": '"truncate": true',
}

#: Kind -> status of TEI; validation is 422 since TEI 1.9 (February 2026), 413 before.
_TEI = {"Backend": 424, "Tokenizer": 422, "Validation": 422, "Empty": 400, "Overloaded": 429, "Unhealthy": 503}


def _json(status: int, body: Any) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _openai(problem: Problem, request_id: str) -> Response:
    kind, code = _OPENAI.get(problem.status, ("server_error", "server_error"))
    error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code or code}
    if problem.status != 402:
        return _json(problem.status, {"error": error})
    response = _json(429, {"error": error})  # what OpenAI says of credit that is spent; waiting does not bring it back
    response.headers["x-should-retry"] = "false"
    return response


def _tei(problem: Problem, request_id: str) -> Response:
    if problem.status == 401:
        return Response(status_code=401)
    if problem.status == 413:
        return PlainTextResponse(problem.message, 413)
    status = problem.status if problem.status in (402, 403, 404, 405, 408, 409, 504) else _TEI[problem.tei]
    return _json(status, {"error": problem.message, "error_type": problem.tei})


def _cohere(problem: Problem, request_id: str) -> Response:
    return _json(problem.status, {"message": problem.message, "id": request_id})


def _vllm(problem: Problem, request_id: str) -> Response:
    usual = "BadRequestError" if problem.status < 500 else "InternalServerError"
    kind = _VLLM.get(problem.status, usual)
    error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.status}
    return _json(problem.status, {"error": error})


def _ollama(problem: Problem, request_id: str) -> Response:
    # the words by which clients of Ollama know that they must send less
    before = "the input length exceeds the context length: " if problem.cuttable else ""
    return _json(problem.status, {"error": before + problem.message})


_BODIES = {"openai": _openai, "tei": _tei, "cohere": _cohere, "vllm": _vllm, "ollama": _ollama}
