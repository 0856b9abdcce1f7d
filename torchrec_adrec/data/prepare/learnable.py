"""The last check of `prepare`: is there anything to learn, and to measure it by?"""

from typing import Any

from torchrec_adrec.errors import DataError
from torchrec_adrec.schema import Schema


def check_learnable(
    report: dict[str, Any], schema: Schema, positives_alone: bool = False
) -> None:
    """Refuse labels from which nothing could be learned, or measured after training.

    Args:
        report: of the prepared data.
        schema: the labels.
        positives_alone: whether every row is a click because that was asked for.

    Raises:
        DataError: names the label and what to do.
    """
    splits, click = report["splits"], schema.labels[0].name
    for label in schema.labels:
        rates = {
            name: figures["label_rate"][label.name] for name, figures in splits.items()
        }
        rows = splits["train"]["observed"][label.name]
        if label.name == click and positives_alone:
            continue
        if rates["train"] == 0 or (rates["train"] == label.rule.highest):
            raise DataError(
                f"every training row has {label.name} = {rates['train']:g} ({rows}"
                f" observed), so there is nothing to learn; {_fix(label.name, rates)}"
            )
    if not splits["test"]["label_rate"][click]:
        rows = splits["test"]["observed"][click]
        raise DataError(
            f"no test row has {click} = 1 ({rows} observed), so neither recall nor the"
            " index could be measured after training; give later rows, or choose"
            " data.split so that there are clicks in the test rows"
        )


def _fix(label: str, rates: dict[str, float]) -> str:
    """Say what to do about a label that is the same in every training row."""
    if rates["train"] == 1:
        return (
            f"add the rows that were shown without success, with {label} = 0, or have"
            " negatives drawn (`positives_only`, docs/own_data.md)"
        )
    elsewhere = [name for name, rate in rates.items() if rate]
    if elsewhere:
        return (
            f"{' and '.join(elsewhere)} rows have others: choose other shares of"
            " data.split, or data.split.by=random"
        )
    return "look at the label's column, or leave the label out if it is not the click"
