"""A Ray of one machine, for the tests that need a real one."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from typing import Any

import pytest

from threefold.integrations.ray_jobs import start

#: A variable that its processes have, and those of other Rays of this machine do not.
MARK = "THREEFOLD_TEST_RAY"


def local_ray() -> Any:
    """The package `ray`, with this process connected to a cluster of two cores.

    It stays until the process ends: the node of a second one in the same process has failed to come up, twice in a row
    (of Ray 2.60, on two busy cores). Where a first one does not come up, there is nothing to test it with.
    """
    import ray

    if ray.is_initialized():
        return ray
    os.environ[MARK] = "1"
    settings: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80_000_000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the processes of a first try, which Ray drops as they are
        try:
            start(ray, "local", **settings, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            if "timed out" not in str(error).lower():
                raise
            pytest.skip(f"Ray does not come up here: {error}")
        gc.collect()
    return ray
