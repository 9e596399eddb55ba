"""A permutation of 0..size-1 that is computed, not stored: any place of it in O(1).

A Feistel network is a bijection of a power of two whatever its round function is (Luby and
Rackoff, 1988). Walking along its cycle until a value falls below `size` makes it one of any
size: "cycle-walking" in Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
The domain is less than twice the size, so that a walk takes less than two steps on average.
The round function is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) with keys
from BLAKE2b. It shuffles well; it is no cipher and keeps no secret.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

ALGORITHM: Final = "feistel-12-splitmix64"  # a change of the numbers gets another name
_ROUNDS: Final = 12

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Permutation:
    """One permutation, given by size and key."""

    size: int  # >= 1
    keys: tuple[int, ...]  # one 64-bit key a round

    @classmethod
    def of(cls, size: int, seed: int, number: int) -> Permutation:
        """Return the permutation `number` of a seed; both are integers >= 0 of any size."""
        text = f"{ALGORITHM}/{seed}/{number}".encode()
        return cls(size, tuple(_key(text, r) for r in range(_ROUNDS)))

    def at(self, places: Indices) -> Indices:
        """Return what stands at these places, each 0 to size - 1; shape [n], as given."""
        bits = max(1, (self.size - 1).bit_length())
        words = self._network(places.astype(np.uint64), bits)
        while (outside := words >= np.uint64(self.size)).any():
            words[outside] = self._network(words[outside], bits)
        return words.astype(np.int64)

    def _network(self, words: _Words, bits: int) -> _Words:
        low = np.uint64(bits - bits // 2)  # bits of the right half; the left one may be empty
        right_mask = np.uint64((1 << int(low)) - 1)
        left_mask = np.uint64((1 << bits // 2) - 1)
        left, right = words >> low, words & right_mask
        for number, key in enumerate(self.keys):
            if number % 2:
                left = left ^ (_mixed(right, key) & left_mask)
            else:
                right = right ^ (_mixed(left, key) & right_mask)
        return (left << low) | right


def _key(text: bytes, number: int) -> int:
    salted = hashlib.blake2b(text, digest_size=8, salt=number.to_bytes(16, "little"))
    return int.from_bytes(salted.digest(), "little")


def _mixed(words: _Words, key: int) -> _Words:
    words = words ^ np.uint64(key)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
