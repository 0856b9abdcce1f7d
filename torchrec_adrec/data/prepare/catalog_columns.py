"""The catalog's columns of some ads, made of their raw values.

`prepare` makes them of all ads, and an update of new ones: by this same code, so that
an ad that is added later is encoded, named and shown as if it had been there before.
"""

from pathlib import Path
from typing import Literal, Self

import polars as pl
from pydantic import BaseModel, ConfigDict

from torchrec_adrec.data.column import RawColumns, column_of, hex_text
from torchrec_adrec.data.prepare.ad_keys import ad_keys
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.errors import ManifestError, reason
from torchrec_adrec.runtime.files import check_hashes, load_hashes
from torchrec_adrec.schema import Schema, Side

AD_KEY = "catalog.json"


class AdKey(BaseModel):
    """Tells how the raw values of an ad become its id.

    Attributes:
        columns: whose values are hashed, in this order (`catalog.ad_ids`).
        numbers: the type of each raw number of the ad's side: 7 and 7.0 have two keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...]
    numbers: dict[str, Literal["Int64", "Float64"]]

    @classmethod
    def of(cls, columns: tuple[str, ...], ads: pl.DataFrame, schema: Schema) -> Self:
        """Describe the ads of a data set.

        Args:
            columns: see `AdKey`.
            ads: their raw values.
            schema: of the data.
        """
        types = {n: str(ads[n].dtype) for n in schema.sources_of(Side.AD)}
        numbers = {n: kind for n, kind in types.items() if kind in ("Int64", "Float64")}
        return cls.model_validate({"columns": columns, "numbers": numbers})

    @classmethod
    def load(cls, data: Path) -> Self:
        """Read what `prepare` wrote.

        Raises:
            ManifestError: it is missing, or has changed.
        """
        if AD_KEY not in load_hashes(data):
            raise ManifestError(
                f"{data} does not say how an ad gets its id: it was prepared by an"
                " earlier release; remove it and run `adrec prepare`"
            )
        check_hashes(data, AD_KEY)
        try:
            return cls.model_validate_json((data / AD_KEY).read_bytes())
        except ValueError as error:
            raise ManifestError(f"{data / AD_KEY}: {reason(error)}") from None

    def save(self, data: Path) -> None:
        """Write it beside the catalog."""
        (data / AD_KEY).write_text(self.model_dump_json(indent=1) + "\n")


def raw_columns(ads: pl.DataFrame, schema: Schema) -> RawColumns:
    """Code the raw values of ads, one row each."""
    return {name: column_of(ads[name]) for name in schema.sources_of(Side.AD)}


def catalog_columns(encoder: Encoder, ads: pl.DataFrame) -> dict[str, pl.Series]:
    """Return the columns of the catalog that raw values alone decide.

    Args:
        encoder: fitted.
        ads: their raw values, one row each.

    Raises:
        NotFiniteError: a number is not finite after its transform.
    """
    schema = encoder.schema
    # The ads go through the encoder like any row: export reads what training read.
    raw = raw_columns(ads, schema)
    encoded = {n: pl.Series(c) for n, c in encoder.encode(raw, Side.AD).items()}
    hex_names = {f.source for f in schema.sparse_of(Side.AD) if f.kind == "hex"}
    texts = {
        f"raw_{n}": hex_text(ads[n]) if n in hex_names else _shown(ads[n])
        for n in schema.shown_of(Side.AD)
    }
    return encoded | texts | ad_keys(encoder, raw)


def _shown(values: pl.Series) -> pl.Series:
    """Values as text, for people to read; a list stays a list, empty where missing."""
    if values.dtype == pl.List:
        return values.fill_null([])
    return values.cast(pl.String)
