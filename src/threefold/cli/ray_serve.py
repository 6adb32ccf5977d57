"""What Ray's own command runs: `serve run threefold.cli.ray_serve:app config=threefold.toml replicas=4 gpus=1`.

The same in a file of Ray (`serve deploy`, KubeRay): `import_path: threefold.cli.ray_serve:app`, and below `args`
what is said here. All but four of them are settings of `threefold serve`, as behind its `--set`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from threefold.errors import InputError
from threefold.integrations.ray_serve import deployment
from threefold.serve.hosted import hosted

Number = TypeVar("Number", int, float)


def app(arguments: dict[str, Any]) -> Any:
    """The application.

    config                a TOML file, as of `threefold serve --config`
    replicas, cpus, gpus  see `deployment`
    """
    given = dict(arguments)
    file = given.pop("config", None)
    replicas = _number(given, "replicas", int, 1)
    cpus, gpus = _number(given, "cpus", float, 1.0), _number(given, "gpus", float, 0.0)
    return deployment(hosted(file, given), replicas=replicas, cpus=cpus, gpus=gpus)


def _number(given: dict[str, Any], name: str, kind: Callable[[Any], Number], usual: Number) -> Number:
    value = given.pop(name, usual)
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected a number, got {value!r}") from None
