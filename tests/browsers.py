"""A headless Chromium, where there is one: what becomes of a page in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")


def dom(address: str, profile: Path) -> str:
    """The page as HTML after ten seconds of its own time.

    profile  a folder for what a browser keeps
    """
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom", address]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    except subprocess.SubprocessError as error:  # whatever a page does, a browser that runs says what became of it
        pytest.skip(f"Chromium does not run here: {error}")
