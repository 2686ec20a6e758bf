"""A shuffled order of 0 .. n - 1 that is computed, not stored: any element by itself, for any n.

A Feistel network (Luby and Rackoff, SIAM J. Comput. 17(2), 1988) permutes the numbers of b bits, where 2**b is at most
2n for all but small n; results of n and above are fed in again until one falls below n ("cycle walking", Black and
Rogaway, CT-RSA 2002), which keeps the map a bijection. The halves differ by a bit where b is odd. The round function is
a multiply-and-shift hash, which is not for cryptography but leaves no pattern that matters here.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
MIN_BITS = 6  # fewer leave the network too few different orders
_MASK = 2**64 - 1
_FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd, with bits well spread


class Permutation:
    """A bijection of 0 .. n - 1.

    Args:
        n: number of elements, 1 to 2**62.
        key: chooses the order, in [0, 2**64).

    Raises:
        ValueError: `n` is out of range.
    """

    def __init__(self, n: int, key: int) -> None:
        if not 1 <= n <= 2**62:
            raise ValueError(f"a permutation of {n} elements; it must be 1 to 2**62")
        self.n = n
        self._bits = _half_bits(n)
        self._keys = round_keys(key)

    def __call__(self, place: int) -> int:
        """Element at `place`, both in 0 .. n - 1; some microseconds."""
        left_bits, right_bits = self._bits
        x = place
        while True:
            left, right = x >> right_bits, x & ((1 << right_bits) - 1)
            for number, key in enumerate(self._keys):
                mixed = ((right + key) * _FIRST) & _MASK
                mixed = ((mixed ^ (mixed >> 32)) * _SECOND) & _MASK
                # The halves change sides, and with them their widths.
                width = left_bits if number % 2 == 0 else right_bits
                left, right = right, left ^ (mixed >> (64 - width))
            x = (left << right_bits) | right
            if x < self.n:
                return x


def round_keys(key: int) -> list[int]:
    """The keys of the rounds, 64 bits each, from one in [0, 2**64)."""
    digest = hashlib.blake2b(key.to_bytes(8, "little"), digest_size=8 * ROUNDS).digest()
    return [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS)]


def permute(n: int, places: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Elements at `places` (m,) of permutations of n with the round keys (ROUNDS, m): a permutation for each place."""
    left_bits, right_bits = (np.uint64(bits) for bits in _half_bits(n))
    x = places.astype(np.uint64)  # (m,)
    waiting = np.arange(x.size)
    while waiting.size:
        y = x[waiting]
        left, right = y >> right_bits, y & ((np.uint64(1) << right_bits) - np.uint64(1))
        for number in range(ROUNDS):
            mixed = (right + keys[number, waiting]) * np.uint64(_FIRST)
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(_SECOND)
            width = left_bits if number % 2 == 0 else right_bits
            left, right = right, left ^ (mixed >> (np.uint64(64) - width))
        x[waiting] = (left << right_bits) | right
        waiting = waiting[x[waiting] >= np.uint64(n)]
    return x.astype(np.int64)


def _half_bits(n: int) -> tuple[int, int]:
    """Bits of the left and of the right half."""
    bits = max(MIN_BITS, (n - 1).bit_length())
    return bits - bits // 2, bits // 2
