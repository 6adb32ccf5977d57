"""Where a Milvus is, a client for it, and its errors.

milvus://host:19530            a server or cluster; /name behind it is a database
milvus+https://host:443        one behind TLS, such as Zilliz Cloud
milvus:papers.db               Milvus Lite in this process, on a folder of this name: for development and tests
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from grpc import RpcError, StatusCode
from pymilvus import MilvusClient, MilvusException

from threefold.errors import InputError, MissingExtraError, StoreError, StoreLockedError
from threefold.paths import expanded

#: How a url is written, for messages.
FORMS = "milvus://host:19530, milvus+https://host, or milvus:file.db for Milvus Lite"

#: Codes of pymilvus: it could not connect; a collection is not there.
_NO_CONNECTION, _NO_COLLECTION = 2, 100

_REMOTE = {"milvus": "http", "milvus+http": "http", "milvus+https": "https"}

#: How many clients of this process use each file of Milvus Lite, which one process can have open.
_users: Counter[str] = Counter()
_counting = threading.Lock()


class Address(NamedTuple):
    """What pymilvus connects to; `local` is a file of Milvus Lite."""

    uri: str
    local: bool


def address_of(url: str) -> Address:
    """The address that a url means."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() == "milvus" and rest and not rest.startswith("//"):
        return Address(_local_file(url, rest), True)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"url {url!r}: {error}. Write it as {FORMS}") from None
    if parts.username or parts.password:
        raise InputError(
            f"url of {host}: it has a user or a password in it. Give them as the api key, in the form user:password"
        )
    if parts.scheme not in _REMOTE or not host:
        raise InputError(f"url {url!r} is not one of a Milvus. Write it as {FORMS}")
    return Address(f"{_REMOTE[parts.scheme]}://{parts.netloc}{parts.path}", False)


def _local_file(url: str, rest: str) -> str:
    path = expanded(rest)
    if path.suffix != ".db":
        raise InputError(f"url {url!r}: the name of a file of Milvus Lite ends with .db. Write it as {FORMS}")
    if not path.parent.is_dir():
        raise InputError(f"url {url!r}: there is no folder {path.parent}. Make it first")
    return str(path.absolute())


class Connection:
    """A client, which may be shared by stores; `close` gives the file of Milvus Lite back."""

    def __init__(self, client: MilvusClient, address: Address) -> None:
        self.client = client
        self.address = address
        self._closed = False

    @property
    def local(self) -> bool:
        return self.address.local

    def close(self) -> None:
        """Closing again does nothing."""
        if not self._closed:
            self._closed = True
            try:
                self.client.close()
            finally:
                if self.local:
                    _leave(self.address.uri)


def connect(url: str, *, api_key: str | None = None, timeout_s: float = 10.0) -> Connection:
    """A client for a url. The api key is the token of Milvus: a key of Zilliz Cloud, or `user:password`."""
    address = address_of(url)
    _quieten()
    if address.local:
        _enter(address.uri)
    try:
        with milvus_errors(f"connect to {url}"):
            client = MilvusClient(uri=address.uri, token=api_key or "", timeout=timeout_s)
    except BaseException:
        if address.local:
            _leave(address.uri)
        raise
    return Connection(client, address)


@contextmanager
def milvus_errors(action: str) -> Iterator[None]:
    """What client and network raise, as StoreError."""
    try:
        yield
    except MilvusException as error:
        if error.code == _NO_COLLECTION:
            raise StoreError(
                f"Milvus: could not {action}: {error.message}. It was dropped or renamed: correct the name, or build "
                "the collection again"
            ) from error
        raise _failed(action, _reason(error)) from error
    except (RpcError, OSError) as error:
        raise _failed(action, _reason(error)) from error


def _failed(action: str, reason: str) -> StoreError:
    return StoreError(f"Milvus: could not {action}: {reason}. Check the url, the api key and the server")


def _reason(error: BaseException) -> str:
    """What an error says; where the client could not connect, and says no more, the error of the network."""
    if isinstance(error, MilvusException) and error.code != _NO_CONNECTION:
        return str(error.message)
    waiting: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while waiting:
        cause = waiting.pop()
        if cause is None or cause in seen:  # the client raises errors from themselves
            continue
        if isinstance(cause, RpcError) and hasattr(cause, "code") and hasattr(cause, "details"):
            code = cause.code()
            return f"{cause.details()} ({code.name if isinstance(code, StatusCode) else code})"
        seen.append(cause)
        waiting += [cause.__context__, cause.__cause__]
    return str(error.message if isinstance(error, MilvusException) else error)


def _quieten() -> None:
    """Milvus Lite and its client print each error with its traceback, and then raise it."""
    for name in ("pymilvus", "milvus_lite"):
        logger = logging.getLogger(name)
        if logger.level in (logging.NOTSET, logging.WARNING):  # as they set it themselves; yours stays
            logger.setLevel(logging.CRITICAL)
    logging.getLogger("grpc._server").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is not that Milvus Lite has no clock, which the client asks for before it reads a page."""
    return not (record.exc_info and record.exc_info[0] is NotImplementedError)


def _enter(file: str) -> None:
    """Start Milvus Lite on a file, or use what runs already."""
    try:
        from milvus_lite.exceptions import DataDirLockedError
        from milvus_lite.server_manager import server_manager_instance
    except ImportError as error:
        if error.name is None or not error.name.startswith("milvus_lite"):
            raise
        raise MissingExtraError("milvus_lite", "milvus-lite", "a url of a file (milvus:file.db)") from None
    with _counting:
        with _failure_of("milvus_lite.server_manager") as failure:
            started = server_manager_instance.start_and_get_uri(file)
        if started is None:
            cause = failure[0] if failure else None
            if isinstance(cause, DataDirLockedError):
                raise StoreLockedError(f"{file} is open in another process. Close it there first") from cause
            raise StoreError(f"{file}: Milvus Lite could not open it: {cause}. Is it a folder of Milvus Lite?")
        _users[file] += 1


def _leave(file: str) -> None:
    """Stop Milvus Lite on a file that nobody here uses any more, so that other processes can open it."""
    from milvus_lite.server_manager import server_manager_instance

    with _counting:
        _users[file] -= 1
        if _users[file] <= 0:
            del _users[file]
            server_manager_instance.release_server(file)


@contextmanager
def _failure_of(logger: str) -> Iterator[list[BaseException]]:
    """The exceptions that are logged in the block: Milvus Lite says in no other way why it did not start."""
    caught: list[BaseException] = []

    class Catcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                caught.append(record.exc_info[1])

    source, catcher = logging.getLogger(logger), Catcher()
    level, propagate = source.level, source.propagate
    source.addHandler(catcher)
    source.setLevel(logging.ERROR)
    source.propagate = False
    try:
        yield caught
    finally:
        source.removeHandler(catcher)
        source.setLevel(level)
        source.propagate = propagate
