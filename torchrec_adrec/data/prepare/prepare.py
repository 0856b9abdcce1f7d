"""Raw files to Parquet, catalog, schema and report. Fitted on the training rows only.

data/
  train/ valid/ test/     part-FILE-CHUNK.parquet: labels, features, ad_id, log_q
  catalog.parquet         every distinct ad
  schema.json transforms.json vocabulary/   what serving encodes a request with
  example_users.json      raw requests to try `adrec recommend` with
  hashes.json             of the fitted files and the catalog, checked when read
  report.json report.md report.png    what came in, what went out, what to look at

Three passes: parse the text once (`spill`), count the training rows (`count`), encode
and write (`write`). Each rank takes whole files; the ranks meet in the folder between
the passes, and what they write does not depend on how many they are.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from torchrec_adrec.arrays import Bools
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.catalog import AdCounter, load_ads, values_of
from torchrec_adrec.data.column import Chunk, Column, JaggedColumn, RawColumns
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.counts import Counter, Counts, count, load_counts
from torchrec_adrec.data.prepare.data_report import (
    DEPENDENCIES_KEPT,
    report_of,
    write_report,
)
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.held_ads import held_ads, refuse_held_ads
from torchrec_adrec.data.prepare.leaks import dependencies, refuse_leaky_sides
from torchrec_adrec.data.prepare.odd_columns import joined_ids, odd_lines
from torchrec_adrec.data.prepare.spill import ChunkRef, ChunkStore, each, spill
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.data.prepare.splits import (
    TEST,
    TRAIN,
    Splitter,
    check_sizes,
    splitter,
)
from torchrec_adrec.data.prepare.twins import refuse_twins
from torchrec_adrec.data.prepare.varying import Varying, latest, refuse_varying, unnamed
from torchrec_adrec.data.prepare.write import SplitWriter, merged_tally
from torchrec_adrec.errors import DataError
from torchrec_adrec.runtime.files import write_hashes
from torchrec_adrec.runtime.progress import Progress
from torchrec_adrec.runtime.ranks import Ranks, SingleProcess
from torchrec_adrec.schema import Schema, Side

EXAMPLES = 50

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
        out: an existing, empty folder, the same for all ranks.
        seed: draws the rows or users of a random split.

    Raises:
        ConfigError: a raw file is missing, or the data cannot be split as asked.
        DataError: too many bad rows, a split without rows, only one label, one number
            written as two ids, a user column or a sequence that gives the ad away, or
            an item that is many ads.
    """
    ranks = ranks or SingleProcess()
    raw = out / "raw"
    spill(data, raw, ranks)
    store = ChunkStore.open(raw)
    _check_bad(store, config)
    refuse_twins(store, data)
    split = splitter(config.split, data, store, seed)
    found = dependencies(_training(store, split), data.schema)
    held = held_ads(_training(store, split), data.schema)
    if not config.allow_leaky_sides:
        refuse_held_ads(held)
        refuse_leaky_sides(found, data.sides)
    encoder, seen = _fit(config, data, store, split, ranks)
    ads, varying = _catalog(seen, data, config)
    left_out = data.not_compared(config.split.by)
    writer = SplitWriter(data, encoder, ads, store, split, out, left_out)
    writer.write(ranks)
    if ranks.is_first:
        tally, repeats = merged_tally(raw, encoder.schema, ranks.world_size)
        repeats["without"] = [name.removeprefix("row:") for name in left_out]
        if varying:
            log.warning("%s", varying.line)
        check_sizes(config.split, tally.sizes())
        encoder = _with_label_means(encoder, tally)
        report = report_of(
            data, store, encoder, ads, tally, found, repeats, config.split.by, seed
        )
        report |= {
            "held_ads": [h.model_dump() for h in held[:DEPENDENCIES_KEPT]],
            "varying_ads": varying and varying.model_dump() | {"line": varying.line},
        }
        report["joined_ids"] = joined_ids(_training(store, split), data.schema)
        _check_learnable(report, data.schema)
        for line in odd_lines(report):
            log.warning("%s", line)
        write_report(report, out)
        _write_examples(store, split, data.schema, out / "example_users.json")
        _write_fitted(encoder, ads, out)
        shutil.rmtree(raw)
    ranks.barrier()


def _check_bad(store: ChunkStore, config: DataConfig) -> None:
    store.bad.check(config.max_bad_rows)
    if not store.num_rows:
        raise DataError(f"no row can be used; first: {store.bad.first[:1]}")
    if store.bad.count:
        first = store.bad.first[0]
        log.warning("%d bad rows left out; first: %s", store.bad.count, first)


def _training(store: ChunkStore, split: Splitter) -> Iterator[tuple[Chunk, Bools]]:
    for ref in store.chunks:
        chunk = ref.load()
        yield chunk, split.assign(chunk, ref) == TRAIN


def _catalog(
    seen: pl.DataFrame, data: DataSet, config: DataConfig
) -> tuple[pl.DataFrame, Varying | None]:
    """The ads, and which of their columns vary."""
    sources = data.schema.sources_of(Side.AD)
    if data.ad:
        ads, varying = latest(seen, data.ad, sources)
    else:
        ads, varying = seen, unnamed(seen, data.items, sources)
    if not config.allow_varying_ads:
        refuse_varying(varying)
    return ads, varying


def _fit(
    config: DataConfig, data: DataSet, store: ChunkStore, split: Splitter, ranks: Ranks
) -> tuple[Encoder, pl.DataFrame]:
    """Count this rank's rows, then fit on the counts of all ranks.

    Returns:
        The encoder, and every combination of the ad's raw values (see `load_ads`).
    """
    schema, raw = data.schema, store.chunks[0].path.parent
    names, sources = _fitted_sources(schema, config), schema.sources_of(Side.AD)
    dated = data.ad is not None
    counter, ads = Counter(names), AdCounter(sources, schema.labels[0].name, dated)

    def look(ref: ChunkRef) -> tuple[Counts, pl.DataFrame, int]:
        chunk = ref.load()
        train = split.assign(chunk, ref) == TRAIN
        found = count(chunk.columns, names, None if train.all() else train)
        return found, ads.count(chunk, train, ref.row), chunk.num_rows

    with Progress("prepare: counting", unit="rows") as progress:
        for values, seen, rows in each(store.of(ranks), look):
            counter.add(values)
            ads.add(seen)
            progress.advance(rows)
    counter.save(raw / f"counts-{ranks.rank:05d}")
    ads.save(raw / f"ads-{ranks.rank:05d}.ipc")
    ranks.barrier()
    folders = sorted(raw.glob("counts-*"))
    encoder = Encoder.fit(schema, load_counts(folders, names), config)
    return encoder, load_ads(sorted(raw.glob("ads-*.ipc")), sources)


def _fitted_sources(schema: Schema, config: DataConfig) -> list[str]:
    """The raw columns whose values are counted: hashed ids need no counts."""
    names = {f.source for f in schema.dense}
    names |= {f.source for f in schema.sparse if f.buckets == "quantile"}
    if config.ids == "frequency":
        names |= {f.source for side in Side for f in schema.bags_of(side)}
    return sorted(names)


def _with_label_means(encoder: Encoder, tally: SplitCounts) -> Encoder:
    labels = []
    for label in encoder.schema.labels:
        _, mean = tally.label("train", label.name)
        update = {"mean": mean or 1.0} if label.rule.is_open else {}
        labels.append(label.model_copy(update=update))
    schema = encoder.schema.model_copy(update={"labels": tuple(labels)})
    return replace(encoder, schema=schema)


def _check_learnable(report: dict[str, Any], schema: Schema) -> None:
    """Refuse labels of which nothing could be learnt, or measured after training."""
    splits, click = report["splits"], schema.labels[0].name
    for label in schema.labels:
        rates = {
            name: about["label_rate"][label.name] for name, about in splits.items()
        }
        rows = splits["train"]["observed"][label.name]
        if rates["train"] == 0 or (rates["train"] == label.rule.highest):
            raise DataError(
                f"every training row has {label.name} = {rates['train']:g} ({rows}"
                f" observed): there is nothing to learn; {_mend(label.name, rates)}"
            )
    if not splits["test"]["label_rate"][click]:
        rows = splits["test"]["observed"][click]
        raise DataError(
            f"no test row has {click} = 1 ({rows} observed): neither recall nor the"
            " index could be measured after training; give later rows, or choose"
            " data.split so that clicks stand in the test rows"
        )


def _mend(label: str, rates: dict[str, float]) -> str:
    if rates["train"] == 1:
        return (
            f"give the rows that were shown and had none too, with {label} = 0, or make"
            " negatives of your own (docs/own_data.md)"
        )
    elsewhere = [name for name, rate in rates.items() if rate]
    if elsewhere:
        return (
            f"{' and '.join(elsewhere)} have some: choose other shares of data.split,"
            " or data.split.by=random"
        )
    return "look at the label's column, or leave the label out if it is not the click"


def _write_fitted(encoder: Encoder, ads: pl.DataFrame, out: Path) -> None:
    """What serving needs: the transforms and the catalog, with their hashes."""
    encoder.save(out)
    schema = encoder.schema
    raw: RawColumns = {n: Column.of(ads[n]) for n in schema.sources_of(Side.AD)}
    encoded = {n: pl.Series(c) for n, c in encoder.encode(raw, Side.AD).items()}
    kinds = {f.source: f.kind for f in schema.sparse_of(Side.AD)}
    texts = {f"raw_{n}": as_text(ads[n], kinds.get(n, "number")) for n in raw}
    catalog = ads.drop(list(raw)).with_columns(**encoded, **texts)
    catalog.write_parquet(out / "catalog.parquet")
    fitted = [out / "schema.json", out / "transforms.json", *out.glob("vocabulary/*")]
    write_hashes(out, [*fitted, out / "catalog.parquet"])


def as_text(column: pl.Series, kind: str) -> pl.Series:
    """Raw values as they stand in the raw file."""
    if kind != "hex":
        return column.cast(pl.String)
    text = [None if value is None else f"{value:08x}" for value in column]
    return pl.Series(column.name, text, dtype=pl.String)


def _write_examples(
    store: ChunkStore, split: Splitter, schema: Schema, path: Path
) -> None:
    """The user's side of some test rows, raw, as a request would bring it."""
    users = list(islice(_test_users(store, split, schema), EXAMPLES))
    path.write_text(json.dumps(users, indent=1) + "\n")


def _test_users(
    store: ChunkStore, split: Splitter, schema: Schema
) -> Iterator[dict[str, Any]]:
    kinds = {f.source: f.kind for f in schema.sparse_of(Side.USER)}
    for ref in reversed(store.chunks):  # most often the test rows are the last
        chunk = ref.load()
        rows = np.flatnonzero(split.assign(chunk, ref) == TEST)[:EXAMPLES]
        columns = {}
        for name in schema.sources_of(Side.USER):
            column = chunk.columns[name]
            if isinstance(column, JaggedColumn):
                columns[name] = lists_of(column.rows(rows))
            else:
                found = values_of(column.rows(rows))
                is_hex = kinds.get(name) == "hex"
                columns[name] = as_text(found, "hex") if is_hex else found
        yield from pl.DataFrame(columns).iter_rows(named=True)


def lists_of(bags: JaggedColumn) -> pl.Series:
    """The items of each row as a list."""
    items = values_of(bags.items).to_list()
    edges = zip(bags.offsets[:-1], bags.offsets[1:], strict=True)
    return pl.Series([items[a:b] for a, b in edges], dtype=pl.List(pl.String))
