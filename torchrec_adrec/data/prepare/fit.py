"""What `prepare` fits on the training rows: encoder, statistics, the catalog."""

from dataclasses import dataclass, replace

import polars as pl

from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.catalog import COUNTED, AdCounter, load_ads
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.counts import Counter, Counts, count, load_counts
from torchrec_adrec.data.prepare.distinct_vectors import (
    DistinctVectors,
    Frames,
    with_vectors,
)
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.fit_statistics import ChosenPairs, add_statistics
from torchrec_adrec.data.prepare.from_log import FromLog
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, map_chunks
from torchrec_adrec.data.prepare.splits import TRAIN, Splitter
from torchrec_adrec.data.prepare.statistics import Folds
from torchrec_adrec.data.prepare.training_rows import TrainingRows
from torchrec_adrec.data.prepare.value_keys import ValueKeys, number_sources
from torchrec_adrec.data.prepare.varying import Varying, latest, refuse_varying, unnamed
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks
from torchrec_adrec.schema import Schema, Side


@dataclass(frozen=True)
class Fitted:
    """What the training rows decide.

    Attributes:
        encoder: of all columns.
        ads: the catalog, raw.
        varying: how the values of its ads vary; None: not at all.
        chosen: the pairs of columns with statistics.
    """

    encoder: Encoder
    ads: pl.DataFrame
    varying: Varying | None
    chosen: ChosenPairs


def fit(
    config: DataConfig, data: DataSet, from_log: FromLog, seed: int, ranks: Ranks
) -> Fitted:
    """Fit everything that is fitted, on the training rows alone. All ranks call it.

    Args:
        config: ids, statistics, limits.
        data: what the raw columns mean.
        from_log: the rows, their splits, and which of them are positives.
        seed: draws the folds of the statistics.
        ranks: this rank and the others.
    """
    store, split = from_log.store, from_log.split
    encoder, keys, combinations = _fit_encoder(config, data, store, split, ranks)
    chosen = ChosenPairs()
    if config.statistics is not None and keys is not None:
        folds = Folds(config.statistics.folds, seed, from_log.positives)
        rows = TrainingRows(store, split, folds)
        train_rows = int(combinations[COUNTED[0]].sum())
        encoder, chosen = add_statistics(
            encoder, keys, config.statistics, rows, train_rows, ranks
        )
    return Fitted(encoder, *_catalog(combinations, data, config), chosen)


def _catalog(
    combinations: pl.DataFrame, data: DataSet, config: DataConfig
) -> tuple[pl.DataFrame, Varying | None]:
    """Make the catalog of every combination of the ad's values, and see what varies."""
    sources = data.schema.sources_of(Side.AD)
    if data.ad:
        ads, varying = latest(combinations, data.ad, sources)
    else:
        ads, varying = combinations, unnamed(combinations, data.items, sources)
    if not config.allow_varying_ads:
        refuse_varying(varying)
    return ads, varying


def _fit_encoder(
    config: DataConfig, data: DataSet, store: ChunkStore, split: Splitter, ranks: Ranks
) -> tuple[Encoder, ValueKeys | None, pl.DataFrame]:
    """Count this rank's rows, then fit on the counts of all ranks.

    Every rank fits, rather than one that sends the result to the others: the fit takes
    little time, and all get the same encoder from the same counts.

    Returns:
        The encoder, the keys that statistics need, and every combination of the ad's
        raw values (see `load_ads`).
    """
    schema, raw = data.schema, store.chunks[0].path.parent
    names, sources = _fitted_sources(schema, config), schema.sources_of(Side.AD)
    dated = data.ad is not None  # only then the latest values of an ad are needed
    counter, ads = Counter(names), AdCounter(sources, schema.labels[0].name, dated)
    distinct, chunks = DistinctVectors(schema), store.of(ranks)

    def count_chunk(ref: ChunkRef) -> tuple[Counts, pl.DataFrame, Frames, int]:
        chunk = ref.load()
        train = split.assign(chunk, ref) == TRAIN
        values = count(chunk.columns, names, None if train.all() else train)
        counted = ads.count(chunk, train, ref.row)
        return values, counted, distinct.of(chunk), chunk.num_rows

    with Progress("prepare: counting", unit="rows") as progress:
        for values, chunk_ads, vectors, rows in map_chunks(chunks, count_chunk):
            counter.add(values)
            ads.add(chunk_ads)
            distinct.add(vectors)
            progress.advance(rows)
    counter.save(raw / f"counts-{ranks.rank:05d}")
    ads.save(raw / f"ads-{ranks.rank:05d}.ipc")
    distinct.save(raw, ranks.rank)
    ranks.barrier()
    folders = sorted(raw.glob("counts-*"))
    # Sums of whole numbers, so the order of the ranks' files does not matter.
    values = load_counts(folders, names)
    schema, stored = with_vectors(schema, values, raw, ranks)
    encoder = replace(Encoder.fit(schema, values, config), vectors=stored)
    keys = None
    if config.statistics is not None:
        keys = ValueKeys.fit(schema, values, config.statistics.buckets)
    return encoder, keys, load_ads(sorted(raw.glob("ads-*.ipc")), sources)


def _fitted_sources(schema: Schema, config: DataConfig) -> list[str]:
    """Return the raw columns that must be counted; hashed ids need no counts."""
    names = {f.source for f in schema.dense}
    names |= {f.source for f in schema.sparse if f.buckets == "quantile"}
    names |= {f.source for f in schema.vectors if f.encoder is None}
    if config.statistics is not None:
        names |= set(number_sources(schema))
    if config.ids == "frequency":
        names |= {f.source for side in Side for f in schema.bags_of(side)}
    return sorted(names)
