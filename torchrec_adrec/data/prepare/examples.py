"""Raw requests made of test rows, to try `adrec recommend` with."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Int64s
from torchrec_adrec.data.column import Chunk, hex_text, values_of
from torchrec_adrec.data.prepare.spill import ChunkStore
from torchrec_adrec.data.prepare.splits import TEST, Splitter
from torchrec_adrec.data.vectors import to_lists
from torchrec_adrec.schema import Schema, Side

EXAMPLES = 200  # as many as `adrec certify` asks for


def write_examples(
    store: ChunkStore, split: Splitter, schema: Schema, path: Path
) -> None:
    """Write the user's side of some test rows, raw, as a request would bring it.

    Args:
        store: the chunks.
        split: gives each row its split.
        schema: names the user's raw columns.
        path: the JSON file to write.
    """
    users = list(islice(_test_users(store, split, schema), EXAMPLES))
    path.write_text(json.dumps(users, indent=1) + "\n")


def _test_users(
    store: ChunkStore, split: Splitter, schema: Schema
) -> Iterator[dict[str, Any]]:
    # In most data the test rows are the last ones, so few chunks need to be read.
    for ref in reversed(store.chunks):
        chunk = ref.load()
        rows = np.flatnonzero(split.assign(chunk, ref) == TEST)[:EXAMPLES]
        yield from raw_requests(chunk, rows, schema).iter_rows(named=True)


def raw_requests(chunk: Chunk, rows: Int64s, schema: Schema) -> pl.DataFrame:
    """Return the user's side of some rows of a chunk, as requests would bring it.

    Args:
        chunk: of raw rows.
        rows: (B,) numbers of its rows.
        schema: names the user's raw columns.
    """
    kinds = {f.source: f.kind for f in schema.sparse_of(Side.USER)}
    vectors = {f.source: f.size for f in schema.vectors if f.encoder is None}
    columns = {}
    for name in schema.sources_of(Side.USER):
        values = values_of(chunk.columns[name].rows(rows))
        if name in vectors:
            values = to_lists(values, vectors[name])
        columns[name] = hex_text(values) if kinds.get(name) == "hex" else values
    return pl.DataFrame(columns)
