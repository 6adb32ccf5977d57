"""`GET /openapi.json`: the routes and their bodies, made of the same list and schemas that answer them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from threefold import __version__

if TYPE_CHECKING:
    from threefold.serve.app import Contract

_REFERENCE = "#/components/schemas/{model}"
#: What groups the routes, by the first word that fits.
_TAGS = (("/collections", "collections"), ("rerank", "rerank"), ("/pooling", "vLLM"), ("score", "vLLM"))


def document(contracts: Sequence[Contract]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes."""
    bodies = sorted({body for one in contracts for body in one.bodies}, key=lambda body: body.__name__)
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for one in contracts:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", one.path)
        paths.setdefault(path, {})[one.method.lower()] = _operation(one, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "threefold", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(contract: Contract, path: str) -> dict[str, Any]:
    description = (contract.handler.__doc__ or "").strip()
    operation: dict[str, Any] = {
        "summary": description.partition("\n")[0],
        "operationId": f"{contract.method.lower()}{re.sub(r'[^a-z0-9]+', '_', path.lower()).rstrip('_')}",
        "tags": [next((tag for part, tag in _TAGS if part in path), contract.dialect)],
        "responses": {"200": {"description": "the answer"}, "default": {"description": "an error of the dialect"}},
    }
    text: dict[str, Any] = {"schema": {"type": "string"}}
    parameters = [{"name": name, "in": "path", "required": True, **text} for name in re.findall(r"\{(\w+)\}", path)]
    parameters += [{"name": name, "in": "query", "required": False, **text} for name in contract.query]
    if parameters:
        operation["parameters"] = parameters
    if contract.bodies:
        content = {"application/json": {"schema": _schema(contract.bodies)}}
        operation["requestBody"] = {"required": True, "content": content}
    if contract.scope is not None:
        operation["security"] = [{"key": []}, {}]
    return operation


def _schema(bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    references = [{"$ref": _REFERENCE.format(model=body.__name__)} for body in bodies]
    return references[0] if len(references) == 1 else {"anyOf": references}
