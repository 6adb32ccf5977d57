"""What `import threefold` offers, and what it costs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TypeGuard

import pytest

import threefold
from threefold import errors
from threefold.errors import ThreefoldError
from threefold.remote import TooLargeError

HEAVY = [
    "huggingface_hub",
    "pyarrow",
    "pymilvus",
    "qdrant_client",
    "qdrant_edge",
    "scipy",
    "tokenizers",
    "torch",
    "typer",
    "rich",
]


def test_names_are_sorted_and_each_resolves() -> None:
    assert threefold.__all__ == sorted(set(threefold.__all__))
    for name in threefold.__all__:
        assert getattr(threefold, name).__name__ == name
    assert set(threefold.__all__) <= set(dir(threefold))


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="module 'threefold' has no attribute 'Index'"):
        _ = threefold.Index


def test_the_import_is_light() -> None:
    """No framework is loaded, and not even numpy; the time is measured by a benchmark."""
    code = f"import sys, threefold; print([m for m in {[*HEAVY, 'numpy']!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["threefold.text.protocol", "threefold.score", "threefold.evaluate.measures"])
def test_parts_without_a_model_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'qdrant_edge') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def drawn_tree() -> dict[str, str]:
    """Class -> parent, from the drawing in the docstring of `errors`."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), "")
        depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
        if not name or (depth == 0 and name != line.strip()):
            continue
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_command_line_loads_what_a_command_needs_and_no_more() -> None:
    heavy = ["huggingface_hub", "pyarrow", "pymilvus", "qdrant_client", "qdrant_edge", "scipy", "torch"]
    code = f"import sys, threefold.cli.main; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_drawn_tree_is_the_tree() -> None:
    classes = {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    assert drawn_tree() == {name: kind.__bases__[0].__name__ for name, kind in classes.items()}
    assert all(issubclass(kind, ThreefoldError) and kind.__doc__ for kind in classes.values())


def is_error(value: object) -> TypeGuard[type[ThreefoldError]]:
    return isinstance(value, type) and issubclass(value, ThreefoldError)


ERRORS = [kind for kind in vars(errors).values() if is_error(kind)] + [TooLargeError]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_comes_through_a_pool_of_processes(kind: type[ThreefoldError]) -> None:
    """One that cannot be unpickled makes `multiprocessing.Pool` wait for ever."""
    made_of: tuple[object, ...] = ("what went wrong",)
    if issubclass(kind, errors.ServeError):
        made_of = ("full", 2.5)
    elif kind is errors.MissingExtraError:
        made_of = ("httpx", "client", "a client")
    error = kind(*made_of)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_exit_codes_tell_kinds_apart() -> None:
    """1 is for what never ends a command: errors of a running server."""
    codes = [kind.exit_code for kind in ThreefoldError.__subclasses__() if kind.exit_code != 1]
    assert len(set(codes)) == len(codes) >= 7
    assert all(1 < code < 64 for code in codes)
