"""Refuses losses that the training rows contradict."""

import json
from pathlib import Path

import polars as pl

from torchrec_adrec.config.run import Config
from torchrec_adrec.config.train import RankingConfig
from torchrec_adrec.errors import ConfigError
from torchrec_adrec.schema import Schema
from torchrec_adrec.training.calibrate import check_enough_rows

ALLOWED = 0.01  # share of a label's sum; faults in logs are below it


def check_data(task: str, config: Config, data: Path, schema: Schema) -> None:
    """Check before the first step that a task's losses and fits have their rows.

    Args:
        task: `retrieval` or `ranking`.
        config: of the run.
        data: a prepared data set.
        schema: of the data.

    Raises:
        ConfigError: as of the checks below.
    """
    check_enough_rows(task, config.ranking, data, schema)
    check_conditions(task, config.ranking, data)
    check_classes(task, config, data, schema)


def check_conditions(task: str, config: RankingConfig, data: Path) -> None:
    """Check that conditional labels are 0 where the label that they are given is 0.

    p(given) p(label | given) leaves out all else, so predictions would be too low.

    Args:
        task: towers know the click alone.
        config: says what is given what.
        data: a prepared data set.

    Raises:
        ConfigError: more than a hundredth of a label's sum stands in such rows.
    """
    if task != "ranking" or not config.conditional:
        return
    splits = ("train", "valid") if config.refit else ("train",)
    files = [path for split in splits for path in (data / split).glob("part-*.parquet")]
    rows = pl.scan_parquet(sorted(files))
    for name, rule in config.conditional.items():
        label, given = pl.col(name).fill_nan(None), pl.col(rule.given)
        sums = rows.select(
            all=label.sum(), outside=label.filter(given == 0).sum()
        ).collect()
        total, outside = sums.row(0)
        if outside > ALLOWED * total:
            raise ConfigError(
                f"ranking.conditional: {outside / total:.1%} of the {name} in the"
                f" training rows of {data} stand in rows without a {rule.given},"
                f" expected at most {ALLOWED:.0%}: {name} is not given {rule.given};"
                " take it out of ranking.conditional"
            )


def check_classes(task: str, config: Config, data: Path, schema: Schema) -> None:
    """Check that a click's cross-entropy is learnt from rows of both classes.

    From clicks alone it learns that everything is clicked, and no figure would say so.

    Args:
        task: towers may be trained without it, a ranker may not.
        config: of the run.
        data: a prepared data set.
        schema: its first label is the click.

    Raises:
        ConfigError: every training row is a click.
    """
    click = schema.labels[0].name
    report = json.loads((data / "report.json").read_text())
    if report["splits"]["train"]["label_rate"][click] < 1:
        return
    if task == "ranking":
        raise ConfigError(
            f"every training row of {data} has {click} = 1: a ranker has nothing to"
            " learn; have negatives drawn (`negatives`, docs/own_data.md), or end with"
            " the index"
        )
    if config.retrieval.alpha > 0:
        raise ConfigError(
            f"every training row of {data} has {click} = 1, and retrieval.alpha ="
            f" {config.retrieval.alpha:g} weighs a loss of both classes; set"
            " retrieval.alpha=0"
        )
