"""`GET /ui`: a page to search the collections of this server by eye, with the reasons of every hit.

It is one file without parts from elsewhere, and speaks the routes that everybody has: it may do what the key allows
that its reader types. The browser runs nothing in it but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import Response

from threefold.serve.http import Call


async def page(call: Call) -> Response:
    """`GET /ui`."""
    text, policy = _page()
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


@cache
def _page() -> tuple[str, str]:
    """The file, and what a browser may do for it: its own style and script, and requests to this server."""
    text = files("threefold.serve").joinpath("page.html").read_text(encoding="utf-8")
    style, script = (_hash(re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)[0]) for kind in ("style", "script"))
    allowed = f"style-src {style}; script-src {script}; connect-src 'self'; base-uri 'none'; form-action 'none'"
    return text, f"default-src 'none'; frame-ancestors 'none'; {allowed}"


def _hash(part: str) -> str:
    digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
    return f"'sha256-{digest}'"
