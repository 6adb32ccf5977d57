"""A Bloom filter: a small, fast set that may answer "perhaps" but never lies with "no".

Adding a word sets k bits in a bit array. A word is reported as present when all
of its k bits are set. Other words may have set the same bits, so false positives
are possible; false negatives are not, because a bit is never cleared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator


class BloomFilter:
    """Approximate membership for about ``capacity`` items at the given error rate."""

    def __init__(self, capacity: int, error_rate: float = 0.01) -> None:
        if capacity <= 0:
            raise ValueError("capacity must be positive")
        if not 0.0 < error_rate < 1.0:
            raise ValueError("error_rate must lie between 0 and 1")
        # The size that minimises memory: m = -n ln(p) / (ln 2)^2 bits,
        # and the matching number of hash functions: k = (m / n) ln 2.
        self.size = max(8, math.ceil(-capacity * math.log(error_rate) / math.log(2) ** 2))
        self.hashes = max(1, round(self.size / capacity * math.log(2)))
        self.bits = bytearray((self.size + 7) // 8)

    def _positions(self, item: str) -> Iterator[int]:
        # Two independent 64-bit numbers are enough: position i is a + i * b
        # (Kirsch and Mitzenmacher), so only one digest has to be computed.
        digest = hashlib.blake2b(item.encode("utf-8"), digest_size=16).digest()
        first = int.from_bytes(digest[:8], "big")
        second = int.from_bytes(digest[8:], "big") | 1  # odd, hence never zero
        for i in range(self.hashes):
            yield (first + i * second) % self.size

    def add(self, item: str) -> None:
        for position in self._positions(item):
            self.bits[position // 8] |= 1 << (position % 8)

    def __contains__(self, item: str) -> bool:
        return all(self.bits[p // 8] >> (p % 8) & 1 for p in self._positions(item))


if __name__ == "__main__":
    seen = BloomFilter(capacity=10_000, error_rate=0.01)
    for number in range(10_000):
        seen.add(f"user-{number}")
    assert all(f"user-{number}" in seen for number in range(10_000))
    wrong = sum(f"guest-{number}" in seen for number in range(10_000))
    print(f"{seen.size} bits, {seen.hashes} hashes, {wrong / 100:.2f} % false positives")
