"""64-bit keys of raw values, of which vocabularies, ad ids and split hashes are made.

The hash is written out here because it must never change: ids are saved in data,
checkpoints and indexes, and polars' own hash differs between versions.
"""

from hashlib import blake2b

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s, UInt64s

# Odd 64-bit constants of splitmix64 (Steele et al., OOPSLA 2014); the last is 2^64/phi.
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix(x: UInt64s) -> UInt64s:
    """One step of splitmix64: a bijection of 64 bits that looks random."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def salted_hash(values: Int64s | UInt64s, constant: np.uint64) -> UInt64s:
    """Hash 64-bit numbers, set apart by a constant (see `salt`)."""
    return splitmix(values.view(np.uint64) ^ constant)


def keys(values: pl.Series) -> Int64s:
    """One key per value, (V,) int64: an integer is its own, a float gives its bits.

    A text, or a vector's bytes, is its BLAKE2b of 63 bits: among a million texts two
    share a key with a probability of 5e-8.
    """
    if values.dtype in (pl.String, pl.Binary):
        raw = (x if isinstance(x, bytes) else x.encode() for x in values)
        hashed = [blake2b(x, digest_size=8).digest() for x in raw]
        # Little-endian on every machine, for the same ids everywhere.
        joined = np.frombuffer(b"".join(hashed), dtype="<u8")
        return (joined >> np.uint64(1)).view(np.int64)
    if values.dtype == pl.Float64:
        return values.to_numpy().view(np.int64)
    return values.cast(pl.Int64).to_numpy()


def salt(text: str) -> np.uint64:
    """A constant that makes the hashes of one column, or of one seed, differ."""
    return np.uint64(splitmix(keys(pl.Series([text])).view(np.uint64))[0])
