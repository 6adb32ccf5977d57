"""The OpenAPI document says what the server does: every route, schemas that resolve, fields that are read."""

from __future__ import annotations

import json
import re

import httpx

from threefold.serve.app import CONTRACTS


def test_every_route_is_in_it_and_every_reference_resolves(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))) <= known
    described = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert described == {(one.method, one.path.replace(":path", "")) for one in CONTRACTS}
    operations = [operation for one in document["paths"].values() for operation in one.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


def test_fields_of_the_extension_are_described(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    body = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert {"input", "model", "dimensions", "embedding_types", "truncate"} <= set(schema["properties"])
    assert schema["required"] == ["input", "model"]
    assert schema["additionalProperties"] is False
    both = document["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert len(both) == 2
    assert "security" not in document["paths"]["/health"]["get"]
