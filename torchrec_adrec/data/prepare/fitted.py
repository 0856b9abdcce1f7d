"""What serving needs of the prepared data: transforms, vocabularies and the catalog."""

from pathlib import Path

import polars as pl

from torchrec_adrec.data.prepare.catalog_columns import (
    AD_KEY,
    AdKey,
    catalog_columns,
)
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.statistics import FOLDER
from torchrec_adrec.data.vectors import FOLDER as VECTORS
from torchrec_adrec.runtime.files import write_hashes
from torchrec_adrec.schema import Side


def write_fitted(
    encoder: Encoder,
    ads: pl.DataFrame,
    ad_key: tuple[str, ...],
    out: Path,
    *others: Path,
) -> None:
    """Write what serving needs: the transforms and the catalog, with their hashes.

    Args:
        encoder: fitted.
        ads: the catalog, raw.
        ad_key: the raw columns whose values make an ad's id.
        out: the folder of the prepared data.
        others: further files of it that get a hash.
    """
    encoder.save(out)
    columns = catalog_columns(encoder, ads)
    raw = encoder.schema.sources_of(Side.AD)
    ads.drop(raw).with_columns(**columns).write_parquet(out / "catalog.parquet")
    AdKey.of(ad_key, ads, encoder.schema).save(out)
    names = ("schema.json", "transforms.json", "catalog.parquet", AD_KEY)
    folders = ("vocabulary", FOLDER, VECTORS)
    fitted = [path for part in folders for path in out.glob(f"{part}/*")]
    write_hashes(out, [*(out / name for name in names), *sorted(fitted), *others])
