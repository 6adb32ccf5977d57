"""What the OpenAPI document promises holds: schemathesis writes requests that follow it, and requests that do not.

Only server errors count: several contracts take more than their schema says, on purpose (TEI ignores unknown fields).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from tests.serve.fakes import START_S, FakeCross, ServedEncoder, make_server, serving

from threefold.serve import openapi
from threefold.serve.app import CONTRACTS
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow  # minutes, most of them for writing the requests

#: Requests of each kind and route.
EXAMPLES = 15
OPERATIONS = sorted((one.method, path) for path, one in ((one.path.replace(":path", ""), one) for one in CONTRACTS))
BOUNDED = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip


@pytest.fixture(scope="module")
def url(served: ServedEncoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = ServeConfig(collections=str(tmp_path_factory.mktemp("all")), max_inputs=4)
    with serving(make_server(served, config, FakeCross(tokenizer))) as url:
        yield url


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document(CONTRACTS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as said", "otherwise"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[" ".join(one) for one in OPERATIONS])
def test_every_route_does_what_the_document_says(
    url: str, document: dict[str, Any], method: str, path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not operation.body:
        pytest.skip("a path cannot be wrong: any name may be one")

    @given(case=operation.as_strategy(generation_mode=mode))
    @BOUNDED
    def check(case: Any) -> None:
        response = case.call(base_url=url, timeout=START_S)
        case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])

    check()
