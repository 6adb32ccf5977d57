from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from tests.serve.fakes import FakeCross, ServedEncoder, make_server, serving

from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def served(tokenizer: Tokenizer) -> ServedEncoder:
    """The encoder that the servers of this folder serve."""
    return ServedEncoder(tokenizer, name="fake-m3", max_tokens=64)


@pytest.fixture(scope="session")
def address(served: ServedEncoder) -> Iterator[str]:
    """A server with the three heads, no cross-encoder, no keys."""
    with serving(make_server(served, ServeConfig(served_names=("alias",), max_inputs=8))) as url:
        yield url


@pytest.fixture(scope="session")
def http(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30.0) as client:
        yield client


@pytest.fixture(scope="session")
def cross_http(served: ServedEncoder, tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    """A server with a cross-encoder."""
    server = make_server(served, cross=FakeCross(tokenizer))
    with serving(server) as url, httpx.Client(base_url=url, timeout=30.0) as client:
        yield client
