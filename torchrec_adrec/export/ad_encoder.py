"""Raw rows of ads to rows of the catalog and vectors, as prepare and export do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from torch import nn

from torchrec_adrec.arrays import Float32s, Int64s
from torchrec_adrec.data.catalog import COUNTED, ad_ids, clash, load_catalog
from torchrec_adrec.data.column import RawColumns, values_of
from torchrec_adrec.data.prepare.catalog_columns import (
    AdKey,
    catalog_columns,
    raw_columns,
)
from torchrec_adrec.data.prepare.encoder import Encoder, NotFiniteError
from torchrec_adrec.data.request import BadRowError, raw_ads
from torchrec_adrec.errors import ManifestError
from torchrec_adrec.evaluation.encode import encode_whole
from torchrec_adrec.export.ad_file import AdRows
from torchrec_adrec.index.manifest import EmbeddingManifest, vectors_of
from torchrec_adrec.runs.stages import DATA, EXPORT, RETRIEVAL
from torchrec_adrec.schema import AD_ID, Side
from torchrec_adrec.serve.proof import ROUNDING, TOLERANCE, distance
from torchrec_adrec.tasks.sharded import check_origin, restore_whole

SAMPLED = 64  # ads of the catalog that must come out as they did
EXACT_INTEGERS = 2**53  # beyond them a float is no longer one integer


@dataclass(frozen=True)
class AdEncoder:
    """Encodes ads of one run.

    Attributes:
        encoder: fitted by `adrec prepare`.
        key: how an ad gets its id.
        catalog: of the run, as it was prepared.
        tower: of the ads, from the checkpoint of the export.
        exported: the manifest of that export.
    """

    encoder: Encoder
    key: AdKey
    catalog: pl.DataFrame
    tower: nn.Module
    exported: EmbeddingManifest

    @classmethod
    def open(cls, run: Path) -> Self:
        """Load what encodes the ads of a run, and prove that it does as before.

        Raises:
            ManifestError: a part is damaged or of another checkpoint, or gives other
                ids, columns or vectors for ads of the catalog than they have.
        """
        data = run / DATA.name
        encoder = Encoder.load(data)
        exported = EmbeddingManifest.load(run / EXPORT.name)
        towers, checkpoint = restore_whole(RETRIEVAL.name, run, encoder.schema)
        check_origin(run / EXPORT.name, exported.checkpoint, checkpoint)
        ads = cls(
            encoder,
            AdKey.load(data),
            load_catalog(data),
            towers.model.ad_tower,
            exported,
        )
        ads.prove(run)
        return ads

    def encode(self, ads: AdRows) -> tuple[pl.DataFrame, Float32s]:
        """Return rows of the catalog (n,) and vectors (n, D), in the order of the rows.

        Raises:
            DataError: a value cannot be one of its column, an ad has no id or is there
                twice; names file and line.
            CheckpointError: the tower gives vectors that cannot be compared.
        """
        raw = self._raw(ads)
        ids = ad_ids(raw, self.key.columns)
        ads.places.check_distinct(ids)
        frame = pl.DataFrame({n: values_of(column) for n, column in raw.items()})
        try:
            columns = catalog_columns(self.encoder, frame)
        except NotFiniteError as error:
            raise ads.places.fault(error.row, str(error)) from None
        counts = self._counts(ids, columns)
        rows = pl.DataFrame({AD_ID: ids} | counts | columns)
        rows = rows.select(self.catalog.columns)
        return rows, self._vectors(rows)

    def _raw(self, ads: AdRows) -> RawColumns:
        try:
            raw = raw_ads(ads.frame, self.encoder.schema)
        except BadRowError as error:
            raise ads.places.fault(error.row, error.message) from None
        frame = pl.DataFrame({n: values_of(column) for n, column in raw.items()})
        for name, kind in self.key.numbers.items():
            numbers = frame[name]
            if kind == "Int64":
                whole = (numbers.floor() == numbers) & (numbers.abs() < EXACT_INTEGERS)
                for row in (~whole).fill_null(False).arg_true().head(1):
                    raise ads.places.fault(
                        row, f"{name} is {numbers[row]!r}, expected a whole number"
                    )
            frame = frame.with_columns(numbers.cast(getattr(pl, kind)))
        if len(self.key.columns) == 1:
            for row in frame[self.key.columns[0]].is_null().arg_true().head(1):
                raise ads.places.fault(
                    row, f"{self.key.columns[0]} is missing, which names the ad"
                )
        return raw_columns(frame, self.encoder.schema)

    def _counts(
        self, ids: Int64s, columns: dict[str, pl.Series]
    ) -> dict[str, pl.Series]:
        """Return impressions and clicks of ads that the catalog holds, 0 of others."""
        # The catalog shows no vectors; an id of two ads would still differ in the rest.
        names = [f"raw_{n}" for n in self.key.columns if f"raw_{n}" in columns]
        ads = pl.DataFrame({AD_ID: ids} | {name: columns[name] for name in names})
        known = self.catalog.select(AD_ID, *COUNTED, *names)
        joined = ads.join(
            known, on=AD_ID, how="left", suffix=":known", maintain_order="left"
        )
        is_known = joined[COUNTED[0]].is_not_null()
        for name in names:
            same = joined[name].eq_missing(joined[f"{name}:known"])
            if (is_known & ~same).any():
                raise clash()
        return {name: joined[name].fill_null(0) for name in COUNTED}

    def _vectors(self, rows: pl.DataFrame) -> Float32s:
        if not len(rows):
            return np.empty((0, self.exported.dim), dtype=np.float32)
        schema, similarity = self.encoder.schema, self.exported.similarity
        return encode_whole(self.tower, rows, schema, Side.AD, similarity)

    def prove(self, run: Path) -> None:
        """Encode some ads of the catalog again: they must come out as they are there.

        Raises:
            ManifestError: they do not.
        """
        size = min(SAMPLED, len(self.catalog))
        order = np.random.default_rng(0).choice(len(self.catalog), size, replace=False)
        expected = self.catalog[np.sort(order)]
        path = run / DATA.name / "catalog.parquet"
        rows, vectors = self.encode(
            AdRows.of_catalog(expected, self.encoder.schema, path)
        )
        if not rows.equals(expected):
            wrong = [n for n in rows.columns if not rows[n].equals(expected[n])]
            raise ManifestError(
                f"ads of {path} would get other {', '.join(wrong)} now, as an update"
                " encodes them; run `adrec prepare` again"
            )
        exported = vectors_of(run / EXPORT.name, expected[AD_ID].to_numpy())
        lookups, dtype = self.exported.lookups, self.exported.dtype
        tolerance = TOLERANCE[lookups] + ROUNDING[dtype]
        furthest = distance(vectors, exported).max()
        if not furthest <= tolerance:
            raise ManifestError(
                f"the towers give vectors that are {furthest:.2g} of their length away"
                f" from those in {run / EXPORT.name}, where {tolerance:g} is allowed;"
                " run `adrec export` again"
            )
