"""Hashes that are the same on every machine and with every version of Python: for splits, partitions and negatives.

hashes = hash_values(rows.column("user_id"))
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]


def hash_values(column: pa.Array) -> Hashes:
    """Return a 64-bit hash of each value, the same on every machine."""
    if pa.types.is_string(column.type):
        # Ids repeat, so each one is hashed once.
        coded = column.dictionary_encode()
        distinct = np.array([hash_bytes(value.encode()) for value in coded.dictionary.to_pylist()], dtype=np.uint64)
        return np.asarray(distinct[coded.indices.to_numpy()], dtype=np.uint64)
    # Adding 0.0 makes -0.0 and 0.0 equal.
    values = column.to_numpy() if pa.types.is_integer(column.type) else column.to_numpy().astype(np.float64) + 0.0
    return mix(values.view(np.uint64))


def hash_bytes(value: bytes) -> int:
    """Return a 64-bit hash of some bytes, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")


def mix(values: Hashes) -> Hashes:
    """Apply SplitMix64's output function after one step (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
