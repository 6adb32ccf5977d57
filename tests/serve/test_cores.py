"""Threads of the products give way to those that answer."""

from __future__ import annotations

import subprocess
import sys

from threefold.serve.cores import POLICY_VARIABLE, SPIN, SPIN_VARIABLE, share_cores


def test_what_the_user_has_set_stays() -> None:
    environment: dict[str, str] = {}
    share_cores(environment)
    assert environment == {SPIN_VARIABLE: str(SPIN)}
    environment[SPIN_VARIABLE] = "7"
    share_cores(environment)
    assert environment == {SPIN_VARIABLE: "7"}
    active = {POLICY_VARIABLE: "active"}
    share_cores(active)
    assert active == {POLICY_VARIABLE: "active"}


def test_the_command_says_it_before_pytorch_is_loaded() -> None:
    """libgomp reads the variable once, when it is loaded."""
    code = """
import builtins, os, sys
import threefold.cli.main
real, seen = builtins.__import__, []

def watched(name, *rest):
    if name == "torch" and not seen:
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
    return real(name, *rest)

builtins.__import__ = watched
sys.argv = ["threefold", "serve", "--show-config"]
try:
    threefold.cli.main.entry()
except SystemExit:
    pass
print(seen)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"['{SPIN}']"
