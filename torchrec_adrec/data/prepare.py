"""Raw files to Parquet, catalog, schema and report. Fitted on the training rows only.

data/
  train/ valid/ test/     part-*.parquet: label, one column per feature, ad_id, log_q
  catalog.parquet         every distinct ad
  schema.json numeric.json vocabulary/    what serving encodes a request with
  example_users.json      raw requests to try `adrec recommend` with
  hashes.json             of the fitted files and the catalog, checked when read
  report.json             what came in, what went out, what is unknown
"""

import json
import logging
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from torchrec_adrec.config import DataConfig, SplitConfig
from torchrec_adrec.data.adapters import criteo
from torchrec_adrec.data.bad_rows import BadRows
from torchrec_adrec.data.catalog import count_ads, hash_ads
from torchrec_adrec.data.encoder import Encoder
from torchrec_adrec.data.leaks import dependencies, refuse_leaky_sides
from torchrec_adrec.data.vocabulary import MISSING, UNKNOWN
from torchrec_adrec.errors import ConfigError, DataError
from torchrec_adrec.files import write_hashes
from torchrec_adrec.progress import Progress
from torchrec_adrec.schema import AD_ID, LOG_Q, Schema, Side

ROW_GROUP_ROWS = 65_536  # 64k-256k decode fastest; small enough to shuffle by group
EXAMPLES = 50
DEPENDENCIES_KEPT = 20  # of the strongest, in the report
SPLITS = ("train", "valid", "test")

log = logging.getLogger(__name__)


def prepare(config: DataConfig, raw: list[Path], out: Path) -> dict[str, Any]:
    """Turn raw files into a prepared data set.

    Args:
        config: columns, split, limits.
        raw: files in time order.
        out: an existing, empty folder.

    Returns:
        The report, as written to `report.json`.

    Raises:
        ConfigError: a raw file is missing.
        DataError: too many bad rows, a split without rows, only one label, or a
            user column that gives an ad column away.
    """
    bad = BadRows()
    schema = criteo.schema(config.ad_features)
    rows = _read_raw(config, raw, out / "raw", bad)
    bounds = _bounds(config.split, rows)
    frames = pl.scan_parquet(out / "raw/*.parquet")
    train = frames.head(bounds["train"][1])
    found = dependencies(train, schema)
    if not config.allow_leaky_sides:
        refuse_leaky_sides(found)
    encoder = Encoder.fit(schema, train, config.min_count)
    encoder.save(out)
    sources = [f.source for f in schema.sparse_of(Side.AD)]
    ads = count_ads(frames, sources, bounds["train"][1], schema.labels[0])
    _write_catalog(encoder, ads, out / "catalog.parquet")
    _write_examples(frames, schema, bounds["test"][0], out / "example_users.json")
    split = _SplitWriter(encoder, ads, bounds, out)
    split.write_all(sorted((out / "raw").glob("*.parquet")))
    shutil.rmtree(out / "raw")
    fitted = [out / "schema.json", out / "numeric.json", *out.glob("vocabulary/*")]
    write_hashes(out, [*fitted, out / "catalog.parquet"])
    _check_labels(split.report()["train"]["label_rate"])
    report = {
        "raw": [str(path) for path in raw],
        "rows_in": rows + bad.count,
        "bad_rows": {"count": bad.count, "first": bad.first},
        "ads": {"all": len(ads), "in_train": int((ads["impressions"] > 0).sum())},
        "num_embeddings": {f.name: f.num_embeddings for f in encoder.schema.sparse},
        "schema": encoder.schema.fingerprint,
        "side_dependencies": [d.model_dump() for d in found[:DEPENDENCIES_KEPT]],
        "splits": split.report(),
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _read_raw(config: DataConfig, raw: list[Path], out: Path, bad: BadRows) -> int:
    """Parse the text once, into typed Parquet that the fits below can scan."""
    missing = [str(path) for path in raw if not path.is_file()]
    if missing or not raw:
        raise ConfigError(
            f"data.raw: no such file: {', '.join(missing) or 'none given'}"
        )
    out.mkdir()
    with Progress("prepare: reading", unit="rows") as progress:
        chunks = criteo.read(raw, bad, config.chunk_megabytes << 20)
        for i, frame in enumerate(chunks):
            frame.write_parquet(out / f"{i:09d}.parquet", compression="lz4")
            progress.advance(len(frame))
    bad.check(config.max_bad_rows)
    if not bad.rows_read:
        raise DataError(f"no row can be used; first: {bad.first[0]}")
    if bad.count:
        log.warning("%d bad rows left out; first: %s", bad.count, bad.first[0])
    return bad.rows_read


def _bounds(split: SplitConfig, rows: int) -> dict[str, tuple[int, int]]:
    """First and past-the-last row of each split; the test takes exactly its share."""
    test = rows - int(split.test * rows)
    valid = test - int(split.valid * rows)
    bounds = {"train": (0, valid), "valid": (valid, test), "test": (test, rows)}
    for name, (first, end) in bounds.items():
        if first == end and getattr(split, name) > 0:
            raise DataError(
                f"data.split.{name} = {getattr(split, name):g} of {rows} rows is none;"
                " give more data or a larger share"
            )
    if bounds["train"][1] == 0:
        raise DataError("the training split has no rows")
    return bounds


def _check_labels(rates: dict[str, float]) -> None:
    for name, rate in rates.items():
        if rate in (0, 1):
            raise DataError(
                f"every training row has {name} = {rate:g}: there is nothing to learn"
            )


def _write_catalog(encoder: Encoder, ads: pl.DataFrame, path: Path) -> None:
    encoded = encoder.encode(ads, Side.AD)
    sources = [f.source for f in encoder.schema.sparse_of(Side.AD)]
    raw = {f"raw_{name}": criteo.as_text(ads[name]) for name in sources}
    features = {name: pl.Series(column) for name, column in encoded.items()}
    ads.drop(sources).with_columns(**features, **raw).write_parquet(path)


def _write_examples(
    frames: pl.LazyFrame, schema: Schema, first: int, path: Path
) -> None:
    """The user's side of some test rows, raw, as a request would bring it."""
    users = frames.slice(first, EXAMPLES).collect()
    hashes = {f.source for f in schema.sparse_of(Side.USER) if not f.bucketed}
    names = [*(f.name for f in schema.dense_of(Side.USER)), *sorted(hashes)]
    shown = users.with_columns(criteo.as_text(users[n]) for n in hashes).select(names)
    path.write_text(json.dumps(shown.to_dicts(), indent=1) + "\n")


def _log_q(ads: pl.DataFrame, ad_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Log of each ad's share of the training impressions; NaN if it had none."""
    impressions = ads["impressions"].to_numpy().astype(np.float64)
    at = np.searchsorted(ads[AD_ID].to_numpy(), ad_ids)
    share = impressions[at] / impressions.sum()
    share[share == 0] = np.nan
    return np.asarray(np.log(share), dtype=np.float32)


@dataclass
class _SplitWriter:
    encoder: Encoder
    ads: pl.DataFrame
    bounds: dict[str, tuple[int, int]]
    out: Path
    _tally: dict[str, dict[str, float]] = field(
        default_factory=lambda: {name: defaultdict(float) for name in SPLITS}
    )

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    def write_all(self, parts: list[Path]) -> None:
        for name in SPLITS:
            (self.out / name).mkdir()
        first = 0
        with Progress("prepare: encoding", self.bounds["test"][1], "rows") as progress:
            for part, path in enumerate(parts):
                raw = pl.read_parquet(path)
                for name in SPLITS:
                    self._write(name, part, raw, first)
                first += len(raw)
                progress.advance(len(raw))

    def _write(self, name: str, part: int, raw: pl.DataFrame, first: int) -> None:
        low, high = (min(max(b - first, 0), len(raw)) for b in self.bounds[name])
        if low == high:
            return
        frame = self._encode(raw[low:high])
        self._count(name, frame)
        frame.write_parquet(
            self.out / name / f"part-{part:09d}.parquet",
            compression="uncompressed",  # lz4 costs the reader a third of its speed
            row_group_size=ROW_GROUP_ROWS,
            statistics=False,
        )

    def _encode(self, raw: pl.DataFrame) -> pl.DataFrame:
        sources = [f.source for f in self.schema.sparse_of(Side.AD)]
        ad_ids = hash_ads(raw, sources)
        columns = self.encoder.encode(raw, Side.USER) | self.encoder.encode(
            raw, Side.AD
        )
        labels = {name: raw[name].cast(pl.Float32) for name in self.schema.labels}
        extra = {AD_ID: ad_ids, LOG_Q: _log_q(self.ads, ad_ids)}
        return pl.DataFrame(labels | columns | extra)

    def _count(self, name: str, frame: pl.DataFrame) -> None:
        tally = self._tally[name]
        tally["rows"] += len(frame)
        for label in self.schema.labels:
            tally[f"sum:{label}"] += float(frame[label].sum())
        for f in self.schema.sparse:
            tally[f"missing:{f.name}"] += int((frame[f.name] == MISSING).sum())
            tally[f"unknown:{f.name}"] += int((frame[f.name] == UNKNOWN).sum())

    def report(self) -> dict[str, Any]:
        """Rows, label rates, and the shares of missing and unknown ids, per split."""
        result: dict[str, Any] = {}
        for name, tally in self._tally.items():
            rows = max(tally["rows"], 1)
            shares = {
                kind: {
                    f.name: tally[f"{kind}:{f.name}"] / rows for f in self.schema.sparse
                }
                for kind in ("missing", "unknown")
            }
            rates = {
                label: tally[f"sum:{label}"] / rows for label in self.schema.labels
            }
            result[name] = {"rows": int(tally["rows"]), "label_rate": rates, **shares}
        return result
