"""What serving needs of the prepared data: transforms, vocabularies and the catalog."""

from pathlib import Path

import polars as pl

from torchrec_adrec.data.column import Column, RawColumns, hex_text
from torchrec_adrec.data.prepare.ad_keys import ad_keys
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.statistics import FOLDER
from torchrec_adrec.runtime.files import write_hashes
from torchrec_adrec.schema import Side


def write_fitted(encoder: Encoder, ads: pl.DataFrame, out: Path, *others: Path) -> None:
    """Write what serving needs: the transforms and the catalog, with their hashes.

    Args:
        encoder: fitted.
        ads: the catalog, raw.
        out: the folder of the prepared data.
        others: further files of it that get a hash.
    """
    encoder.save(out)
    schema = encoder.schema
    # The ads go through the encoder like any row: export reads what training read.
    raw: RawColumns = {n: Column.of(ads[n]) for n in schema.sources_of(Side.AD)}
    encoded = {n: pl.Series(c) for n, c in encoder.encode(raw, Side.AD).items()}
    hex_names = {f.source for f in schema.sparse_of(Side.AD) if f.kind == "hex"}
    texts = {
        f"raw_{n}": hex_text(ads[n]) if n in hex_names else ads[n].cast(pl.String)
        for n in raw
    }
    columns = encoded | texts | ad_keys(encoder, raw)
    ads.drop(list(raw)).with_columns(**columns).write_parquet(out / "catalog.parquet")
    names = ("schema.json", "transforms.json", "catalog.parquet")
    fitted = [path for part in ("vocabulary", FOLDER) for path in out.glob(f"{part}/*")]
    write_hashes(out, [*(out / name for name in names), *sorted(fitted), *others])
