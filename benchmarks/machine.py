"""What a figure was measured on: processor, load, versions, commit. Shared by the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "threefold", "torch", "numpy", "tokenizers", "qdrant-edge-py", "FlagEmbedding", "faiss-cpu",
    "sentence-transformers", "transformers",
)  # fmt: skip
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """Facts for the JSON of a benchmark."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "load": [round(one, 2) for one in os.getloadavg()],
        **_gpu(),
    }


def rounded(value: Any, digits: int) -> Any:
    """The same with fractions of so many digits."""
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    return round(value, digits) if isinstance(value, float) else value


def write(result: dict[str, Any], output: Path | None, digits: int) -> None:
    """Print the figures and the machine as one line of JSON, and write them to a file."""
    whole = {**rounded(result, digits), **machine()}
    print(json.dumps(whole, ensure_ascii=False))
    if output is not None:
        output.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")


def _gpu() -> dict[str, str]:
    """Of the first GPU, where the benchmark has PyTorch and PyTorch has one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    facts = torch.cuda.get_device_properties(0)
    return {"gpu": f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"}


def _commit() -> str:
    run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    have = [flag for flag in FLAGS if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', '')} ({' '.join(have)})"
