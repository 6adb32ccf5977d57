"""A Ray of one machine, for the tests that need a real one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threefold.integrations.ray_jobs import start


@contextmanager
def local_ray() -> Iterator[Any]:
    """The package `ray`, with this process connected to a cluster of two cores."""
    import ray

    start(
        ray,
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray
    ray.shutdown()
