"""Health check of the container: ends with 0 when the server answers. Standard library only, for it runs all the time.

Port and scheme are what the server reads: THREEFOLD_SERVE_... variables, else the file of THREEFOLD_SERVE_CONFIG. Who
gives them as flags says them by -e as well.
"""

from __future__ import annotations

import os
import ssl
import tomllib
import urllib.request
from pathlib import Path
from typing import Any


def address() -> str:
    """Of the server in this container."""
    config = os.environ.get("THREEFOLD_SERVE_CONFIG")
    table: dict[str, Any] = tomllib.loads(Path(config).read_text(encoding="utf-8")) if config else {}
    table = table.get("serve", table)
    port = os.environ.get("THREEFOLD_SERVE_PORT") or table.get("port") or 8000
    secure = os.environ.get("THREEFOLD_SERVE_TLS_CERT") or table.get("tls_cert")
    return f"{'https' if secure else 'http'}://127.0.0.1:{port}/health"


if __name__ == "__main__":
    trusting = ssl.create_default_context()
    trusting.check_hostname = False  # the certificate is that of the name outside
    trusting.verify_mode = ssl.CERT_NONE
    direct = urllib.request.ProxyHandler({})  # whatever http_proxy says
    opener = urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=trusting))
    opener.open(address(), timeout=4)  # 503, too, is an error here
