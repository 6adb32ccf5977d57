"""Recorded requests of every dialect and the exact shape of each answer, in `contracts/*.json`.

A shape is JSON. Objects must have exactly its keys, arrays exactly its items; `["$each", shape]` is any number of
items of one shape. Words that begin with $ stand for any value of a kind; everything else must be equal.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

FOLDER = Path(__file__).parent / "contracts"
CASES = [
    pytest.param(case, id=f"{path.stem}: {case['name']}")
    for path in sorted(FOLDER.glob("*.json"))
    for case in json.loads(path.read_text(encoding="utf-8"))
]

KINDS: dict[str, Any] = {
    "$any": lambda value: True,
    "$text": lambda value: isinstance(value, str) and value,
    "$int": lambda value: type(value) is int and value >= 0,
    "$float": lambda value: type(value) is float,
    "$unit": lambda value: type(value) in (int, float) and 0.0 <= value <= 1.0,
    "$now": lambda value: type(value) is int and abs(value - time.time()) < 3600,
    "$base64": lambda value: isinstance(value, str) and base64.b64decode(value, validate=True),
}


def mismatch(shape: Any, value: Any, place: str = "$") -> str | None:
    """Where the value is not of the shape; None where it is."""
    if isinstance(shape, str) and shape in KINDS:
        return None if KINDS[shape](value) else f"{place}: {value!r} is not {shape}"
    if isinstance(shape, dict):
        if not isinstance(value, dict) or set(shape) != set(value):
            return f"{place}: keys {sorted(value) if isinstance(value, dict) else value!r}, expected {sorted(shape)}"
        return next((found for key in shape if (found := mismatch(shape[key], value[key], f"{place}.{key}"))), None)
    if isinstance(shape, list) and isinstance(value, list):
        if len(shape) == 2 and shape[0] == "$each":
            shape = [shape[1]] * len(value)
        if len(shape) != len(value):
            return f"{place}: {len(value)} items, expected {len(shape)}"
        return next(
            (f for i, (s, v) in enumerate(zip(shape, value, strict=True)) if (f := mismatch(s, v, f"{place}[{i}]"))),
            None,
        )
    return None if type(shape) is type(value) and shape == value else f"{place}: {value!r}, expected {shape!r}"


@pytest.mark.parametrize("case", CASES)
def test_contract(case: dict[str, Any], http: httpx.Client, cross_http: httpx.Client) -> None:
    client = cross_http if case.get("server") == "cross" else http
    response = client.request(case.get("method", "POST"), case["path"], json=case.get("body"))
    assert response.status_code == case.get("status", 200), response.text
    for name in case.get("headers", []):
        assert name in response.headers
    if "text" in case:
        assert response.text == case["text"]
    else:
        assert mismatch(case["shape"], response.json()) is None


def test_the_comparison_itself_sees_differences() -> None:
    assert mismatch({"a": ["$each", "$int"]}, {"a": [1, 2]}) is None
    assert mismatch({"a": ["$each", "$int"]}, {"a": [1, 2.0]}) == "$.a[1]: 2.0 is not $int"
    assert mismatch({"a": 1}, {"a": 1, "b": 2}) == "$: keys ['a', 'b'], expected ['a']"
    assert mismatch([1, 2], [1]) == "$: 1 items, expected 2"
    assert mismatch({"code": "400"}, {"code": 400}) == "$.code: 400, expected '400'"
