"""Vectors of ads and users in a folder, for the towers to learn or to start from.

`adrec lightgcn` writes them. An ad is named by its `ad_id` and a user by his
`user_key`, which follow from raw values alone: towers on the same rows find them
whatever their tables are.

FOLDER/
  ads.parquet users.parquet   a name and a vector, as bytes, in each row
  source.json                 the rows and settings that they were made from
  hashes.json                 of the three
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.errors import DataError, ManifestError
from torchrec_adrec.index.manifest import vectors_in
from torchrec_adrec.runtime.files import check_hashes, read_json
from torchrec_adrec.schema import AD_ID, USER_KEY, Side

SOURCE = "source.json"
FILES = {Side.USER: ("users.parquet", USER_KEY), Side.AD: ("ads.parquet", AD_ID)}


class KeptVectors(NamedTuple):
    """The vectors of one side.

    Attributes:
        ids: (M,) names of ads or users, rising.
        vectors: (M, D), finite.
    """

    ids: Int64s
    vectors: Float32s


def rows_of(data: Path) -> dict[str, str]:
    """Return what tells a prepared data set's rows apart: a hash of every split.

    Raises:
        DataError: its report cannot be read.
    """
    splits = read_json(data / "report.json")["splits"]
    return {name: figures["hash"] for name, figures in splits.items()}


def load_kept(folder: Path, data: Path) -> dict[Side, KeptVectors]:
    """Read the vectors of both sides.

    Args:
        folder: as `adrec lightgcn` writes it.
        data: the prepared data set that they are used with. With other rows in it, a
            click that was fitted on could be one that the towers are judged by.

    Raises:
        ManifestError: the folder is missing, damaged, or was made from other rows.
        DataError: a vector is not finite.
    """
    check_hashes(folder)
    source: Mapping[str, Any] = read_json(folder / SOURCE)
    rows = rows_of(data)
    if source["rows"] != rows:
        raise ManifestError(
            f"{folder} was made from rows {json.dumps(source['rows'])}, but {data} has"
            f" {json.dumps(rows)}; make it from these by `adrec lightgcn`"
        )
    return {side: _read(folder / name, key) for side, (name, key) in FILES.items()}


def _read(path: Path, key: str) -> KeptVectors:
    table = pq.read_table(path)
    ids, vectors = table[key].to_numpy(), vectors_in(table)
    if not np.isfinite(vectors).all():
        raise DataError(f"{path}: a vector is not finite; make it again")
    order = np.argsort(ids)
    return KeptVectors(ids[order], vectors[order])
