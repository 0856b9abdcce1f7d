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
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchrec_adrec.arrays import Bools
from torchrec_adrec.config.data import DataConfig
from torchrec_adrec.data.column import Chunk
from torchrec_adrec.data.dataset import DataSet
from torchrec_adrec.data.prepare.data_report import write_report
from torchrec_adrec.data.prepare.encoder import Encoder
from torchrec_adrec.data.prepare.examples import write_examples
from torchrec_adrec.data.prepare.few_times import in_time_order
from torchrec_adrec.data.prepare.fit import fit
from torchrec_adrec.data.prepare.fitted import write_fitted
from torchrec_adrec.data.prepare.from_log import make_from_log
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
from torchrec_adrec.data.prepare.spill import ChunkStore, spill
from torchrec_adrec.data.prepare.split_counts import SplitCounts
from torchrec_adrec.data.prepare.splits import TRAIN, Splitter, check_sizes
from torchrec_adrec.data.prepare.statistics_report import statistics_figures
from torchrec_adrec.data.prepare.twins import refuse_twins
from torchrec_adrec.data.prepare.write import SplitWriter, merge_counts
from torchrec_adrec.errors import DataError
from torchrec_adrec.runtime.ranks import Ranks, SingleProcess

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
    fitted = fit(config, data, from_log, seed, ranks)
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
