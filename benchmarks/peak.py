"""What this processor could do: rates of its units in loops of nothing else, and what its memory gives.

    python benchmarks/peak.py

A library's matrix product is no ceiling: PyTorch's reaches 40 to 98 % of the units, by processor and kind of numbers.
This runs `peak.c`, compiled for this processor by gcc, on all cores: sums of float32, of bfloat16 (AVX512-BF16) and of
int8 (VNNI) where the instructions are there, 15 at a time and none waiting for another; and reads 512 MiB in pages of
4 kB and of 2 MB; best of five each. PyTorch's products are measured in the same run. Memory that others share gives
other numbers a minute later. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from encode import matrix_rates
from machine import write

HERE = Path(__file__).parent


def compiled(folder: Path) -> Path:
    """The program, built."""
    program = folder / "peak"
    command = ["gcc", "-O2", "-march=native", "-fopenmp", str(HERE / "peak.c"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def measured() -> dict[str, Any]:
    """Rates in GFLOP/s, memory in GB/s."""
    with tempfile.TemporaryDirectory() as folder:
        lines = subprocess.run([compiled(Path(folder))], check=True, capture_output=True, text=True).stdout.splitlines()
    units, memory = map(json.loads, lines)
    products = {kind: rate / 1e9 for kind, rate in matrix_rates().items()}
    return {"units_gflops": units, "pytorch_gflops": products, "memory_gb_per_s": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "peak.json")
    arguments = parser.parse_args()
    found = measured()
    for kind, rate in found["pytorch_gflops"].items():
        units = found["units_gflops"].get(kind)
        share = f"{units:>8,} in a loop of nothing else, {rate / units:.0%} of it" if units else ""
        print(f"{kind:<12}{rate:>8,.0f} GFLOP/s by PyTorch{share}")
    for pages, rate in found["memory_gb_per_s"].items():
        print(f"{pages:<12}{rate:>8} GB/s")
    write(found, arguments.output, 1)


if __name__ == "__main__":
    main()
