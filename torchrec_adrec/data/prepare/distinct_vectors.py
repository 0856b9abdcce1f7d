"""The distinct vectors of a data set, collected from all rows, written once.

They are needed of the rows of all splits, unlike what is fitted: a test row must have
its vector as well. Texts become vectors here, each distinct text once.
"""

from pathlib import Path

import numpy as np
import polars as pl

from torchrec_adrec.data.column import Chunk, scalar_column
from torchrec_adrec.data.keys import keys
from torchrec_adrec.data.prepare.counts import Counts
from torchrec_adrec.data.prepare.text_vectors import DistinctFolder
from torchrec_adrec.data.text_encoders import embed, open_same_encoder
from torchrec_adrec.data.vectors import (
    FOLDER,
    from_bytes,
    open_distinct,
    position,
    write_distinct,
)
from torchrec_adrec.runtime.ranks import Ranks
from torchrec_adrec.schema import Schema

TEXT_VECTORS = "text_vectors"  # the folder of encoded texts, beside the data's
BLOCK = 4_096  # vectors that are squared at once
Frames = dict[str, pl.DataFrame]


class DistinctVectors:
    """Collects the raw values of a rank's rows.

    Args:
        schema: names the vectors.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._parts: dict[str, list[pl.DataFrame]] = {
            f.name: [] for f in schema.vectors
        }

    def of(self, chunk: Chunk) -> Frames:
        """Return `key` and `value` of every value of a chunk, by feature."""
        frames = {}
        for feature in self.schema.vectors:
            values = scalar_column(chunk.columns, feature.source).values
            frames[feature.name] = pl.DataFrame({"key": keys(values), "value": values})
        return frames

    def add(self, frames: Frames) -> None:
        """Add the values of one chunk."""
        for name, frame in frames.items():
            parts = [*self._parts[name], frame]
            self._parts[name] = [pl.concat(parts).unique("key")]

    def save(self, raw: Path, rank: int) -> None:
        """Write this rank's values."""
        for number, parts in enumerate(self._parts.values()):
            if parts:
                parts[0].write_ipc(_path(raw, number, rank))


def with_vectors(
    schema: Schema, counts: Counts, raw: Path, ranks: Ranks
) -> tuple[Schema, DistinctFolder | None]:
    """Write the distinct vectors, and fit their scales. All ranks call it, when saved.

    Args:
        schema: names the vectors.
        counts: of the keys of the training rows' vectors.
        raw: the folder that the ranks saved into, in that of the prepared data.
        ranks: the first one writes, the others wait.

    Returns:
        The schema with scales, and what finds a value's vector; None without vectors.
    """
    if not schema.vectors:
        return schema, None
    out = raw.parent
    # Beside the data, which are made anew where a setting changes: texts are not.
    _write(schema, raw, out, out.parent / TEXT_VECTORS, ranks)
    return _with_scales(schema, counts, out), DistinctFolder(out / FOLDER)


def _write(schema: Schema, raw: Path, out: Path, cache: Path, ranks: Ranks) -> None:
    """Write the distinct vectors of all features.

    Args:
        schema: names the vectors.
        raw: the folder that the ranks saved into.
        out: of the prepared data.
        cache: keeps the vectors of texts, for the next time.
        ranks: the first one writes, the others wait.
    """
    if ranks.is_first:
        for number, feature in enumerate(schema.vectors):
            parts = [pl.read_ipc(p) for p in sorted(raw.glob(_path(raw, number).name))]
            values = pl.concat(parts).unique("key").sort("key")
            raw_values = values["value"].rename(feature.name)
            components = (
                embed(open_same_encoder(feature.encoder), raw_values, cache)
                if feature.encoder
                else from_bytes(raw_values, feature.size)
            )
            value_keys = values["key"].to_numpy()
            write_distinct(out / FOLDER, feature.name, value_keys, components)
    if schema.vectors:
        ranks.barrier()


def _with_scales(schema: Schema, counts: Counts, out: Path) -> Schema:
    """Fit the scale of every vector to the training rows.

    Args:
        schema: the features.
        counts: of the keys of the training rows' vectors.
        out: the prepared data, with the distinct vectors.
    """
    scaled = []
    for feature in schema.vectors:
        if feature.encoder is not None:  # of length 1
            scaled.append(feature.model_copy(update={"scale": feature.size**0.5}))
            continue
        rows = counts[feature.source]
        places = position(out / FOLDER, feature.name, rows["value"].to_numpy())
        distinct = open_distinct(out / FOLDER, feature.name)
        # The counts are in the order of the keys, for any number of ranks.
        blocks = [places[i : i + BLOCK] for i in range(0, len(places), BLOCK)]
        parts = [np.square(distinct[b, :-1], dtype=float).mean(axis=1) for b in blocks]
        weights = rows["count"].to_numpy()
        total = float(np.dot(np.concatenate([[], *parts]), weights))
        mean = total / max(int(weights.sum()), 1)
        scale = mean**-0.5 if mean > 0 else 1.0
        scaled.append(feature.model_copy(update={"scale": scale}))
    return schema.model_copy(update={"vectors": tuple(scaled)})


def _path(raw: Path, number: int, rank: int | None = None) -> Path:
    name = "*" if rank is None else f"{rank:05d}"
    return raw / f"vectors-{number:04d}-{name}.ipc"
