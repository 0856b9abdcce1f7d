"""The stage `prepare`: from raw files to Parquet, catalog, schema and report.

data/
  train/ valid/ test/     part-FILE-CHUNK.parquet: labels, features, ad_id, log_q, and
                          user_key where the data names a user
  catalog.parquet         every distinct ad; catalog.json: how an ad gets its id
  schema.json transforms.json vocabulary/ statistics/ vectors/
                          with these, serving encodes a request
  example_users.json      raw requests to try `adrec recommend` with
  held_out_users.parquet  more of them, whom the whole funnel is judged on
  hashes.json             of the fitted files and the catalog, checked at every reading
  report.json report.md report.png    what came in, what went out, what to look at

There are three passes: parse the text once (`spill`), count the training rows
(`counts`), encode and write (`write`). Histories and negatives are made behind the
first (`from_log`). Statistics of values, where they are asked for,
take one pass more (`fit_statistics`). All that is fitted is fitted on the training
rows alone. Each rank takes whole files, and between the passes the ranks exchange their
counts as files in the folder, so the output does not depend on the number of ranks.
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from torchrec_adrec.arrays import Bools
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.catalog import COUNTED, AdCounter, load_ads
from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.counts import Counter, Counts, count, load_counts
from torchrec_adrec.data.prepare.data_report import write_report
from torchrec_adrec.data.prepare.distinct_vectors import (
    DistinctVectors,
    Frames,
    with_vectors,
)
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.examples import write_examples
from torchrec_adrec.data.prepare.few_times import in_time_order
from torchrec_adrec.data.prepare.fit_statistics import ChosenPairs, add_statistics
from torchrec_adrec.data.prepare.fitted import write_fitted
from torchrec_adrec.data.prepare.from_log import FromLog, make_from_log
from torchrec_adrec.data.prepare.held_ads import HeldAd, held_ads, refuse_held_ads
from torchrec_adrec.data.prepare.held_out_users import write_held_out_users
from torchrec_adrec.data.prepare.leaks import (
    Dependency,
    dependencies,
    refuse_leaky_sides,
)
from torchrec_adrec.data.prepare.learnable import check_learnable
from torchrec_adrec.data.prepare.odd_columns import joined_ids, odd_lines
from torchrec_adrec.data.prepare.report_figures import Findings, report_figures
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, map_chunks, spill
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.data.prepare.splits import TRAIN, Splitter, check_sizes
from torchrec_adrec.data.prepare.statistics import Folds
from torchrec_adrec.data.prepare.statistics_report import statistics_figures
from torchrec_adrec.data.prepare.training_rows import TrainingRows
from torchrec_adrec.data.prepare.twins import refuse_twins
from torchrec_adrec.data.prepare.value_keys import ValueKeys, number_sources
from torchrec_adrec.data.prepare.varying import Varying, latest, refuse_varying, unnamed
from torchrec_adrec.data.prepare.write import SplitWriter, merge_counts
from torchrec_adrec.errors import DataError
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks, SingleProcess
from torchrec_adrec.schema import Schema, Side

log = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    data: DataSet,
    out: Path,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> None:
    """Turn raw files into a prepared data set. All ranks call it.

    Args:
        config: splits, ids, limits.
        data: the raw files and what their columns mean.
        out: an existing, empty folder, the same for all ranks.
        seed: draws the rows or users of a random split.
        ranks: this rank and the others; None is a single process.

    Raises:
        ConfigError: a raw file is missing, or the data cannot be split as asked.
        DataError: there are too many bad rows, a split has no rows, a label is always
            the same, one number is written as two ids, a user column gives the ad
            away, or one item is many ads.
    """
    ranks = ranks or SingleProcess()
    raw = out / "raw"
    spill(data, raw, ranks)
    store = ChunkStore.open(raw)
    _check_bad_rows(store, config)
    # Most refusals come before anything is counted or written. Every rank checks the
    # same chunks, so all of them stop and none waits for the others.
    refuse_twins(store, data)
    from_log = make_from_log(config, data, store, seed, ranks)
    store, split = from_log.store, from_log.split
    pairs, held = _leaks(config, data, store, split)
    fitted = _fit(config, data, from_log, seed, ranks)
    encoder, ads, varying = fitted.encoder, fitted.ads, fitted.varying
    not_compared = data.not_compared(config.split.by)
    writer = SplitWriter(data, encoder, ads, store, split, out, not_compared)
    writer.write(ranks)
    if ranks.is_first:
        tally, repeats = merge_counts(raw, encoder.schema, ranks.world_size)
        repeats["without"] = [name.removeprefix("row:") for name in not_compared]
        if varying:
            log.warning("%s", varying.line)
        check_sizes(config.split, tally.sizes())
        encoder = _with_label_means(encoder, tally)
        joined = joined_ids(_training_rows(data, store, split), data.schema)
        findings = Findings(pairs, held, joined, varying, repeats)
        report: dict[str, Any] = {
            "raw": [str(path) for path in data.files],
            "split_by": config.split.by,
            "in_time_order": in_time_order(config.split, data, store),
            "seed": seed,
            "negatives": from_log.negatives,
        } | report_figures(store, encoder, ads, tally, findings)
        if encoder.statistics is not None:
            report["statistics"] = statistics_figures(
                encoder.schema, out, fitted.chosen
            )
        is_positive = data.negatives is not None and not data.negatives.count
        check_learnable(report, data.schema, is_positive)
        for line in odd_lines(report):
            log.warning("%s", line)
        write_report(report, out)
        write_examples(store, split, data.schema, out / "example_users.json")
        users = write_held_out_users(store, split, data.schema, out, seed)
        write_fitted(encoder, ads, data.ad_key, out, users)
        shutil.rmtree(raw)
    ranks.barrier()


def _check_bad_rows(store: ChunkStore, config: DataConfig) -> None:
    store.bad.check(config.max_bad_rows)
    if not store.num_rows:
        raise DataError(f"no row can be used; first: {store.bad.first[:1]}")
    store.bad.check_unmatched(config.max_unmatched_rows)
    store.bad.warn()


def _training_rows(
    data: DataSet, store: ChunkStore, split: Splitter
) -> Iterator[tuple[Chunk, Bools]]:
    """Yield every chunk with the mask of its training rows that the log holds.

    Drawn negatives are none of them: a user's column that gives the ad of its row away
    does not give theirs away, and would look harmless beside four of them.
    """
    click = data.schema.labels[0].name
    for ref in store.chunks:
        chunk = ref.load()
        rows = split.assign(chunk, ref) == TRAIN
        if data.negatives is not None:
            rows &= chunk.labels[click] == 1
        yield chunk, rows


def _leaks(
    config: DataConfig, data: DataSet, store: ChunkStore, split: Splitter
) -> tuple[list[Dependency], list[HeldAd]]:
    """Measure how far the user's columns give the ad away, and refuse what leaks."""
    pairs = dependencies(_training_rows(data, store, split), data.schema)
    held = held_ads(_training_rows(data, store, split), data.schema)
    if not config.allow_leaky_sides:
        refuse_held_ads(held)
        refuse_leaky_sides(pairs, data.sides)
    return pairs, held


@dataclass(frozen=True)
class _Fitted:
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


def _fit(
    config: DataConfig, data: DataSet, from_log: FromLog, seed: int, ranks: Ranks
) -> _Fitted:
    """Fit everything that is fitted, on the training rows alone."""
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
    return _Fitted(encoder, *_catalog(combinations, data, config), chosen)


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


def _with_label_means(encoder: Encoder, tally: SplitCounts) -> Encoder:
    """Fill in the training mean of every label that is a value.

    The schema must hold the means before its fingerprint goes into the report.
    """
    labels = []
    for label in encoder.schema.labels:
        _, mean = tally.label("train", label.name)
        # A mean of 0 could not scale anything; `check_learnable` refuses such data.
        update = {"mean": mean or 1.0} if label.rule.is_open else {}
        labels.append(label.model_copy(update=update))
    schema = encoder.schema.model_copy(update={"labels": tuple(labels)})
    return replace(encoder, schema=schema)
