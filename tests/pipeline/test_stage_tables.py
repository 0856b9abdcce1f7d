"""Tables of single stages in a run's report."""

import pytest

from torchrec_adrec.pipeline.stage_tables import training_lines

TRAIN = {
    "steps": 20,
    "planned_steps": 20,
    "samples_per_second": 10.0,
    "dropped_rows_per_epoch": 0,
    "restarts": 0,
    "validation": [(10, 0.25), (20, 0.5)],
}


@pytest.mark.parametrize(
    ("judged_by", "best"), [("log_loss", "| 10 | 0.2500"), ("ndcg@10", "| 20 | 0.5000")]
)
def test_the_best_evaluation_is_that_of_the_figure_that_chose(
    judged_by: str, best: str
) -> None:
    """Of a loss the smallest, of a list's quality the largest."""
    lines = [*training_lines({"retrieval": TRAIN | {"judged_by": judged_by}})]
    assert f"| retrieval, step | validation {judged_by.replace('_', ' ')} |" in lines
    assert [line for line in lines if "(best)" in line] == [f"{best} (best) |"]


def test_rows_that_no_log_holds_are_named() -> None:
    lines = [*training_lines({"ranking": TRAIN | {"retrieved_rows_per_epoch": 1234}})]
    assert "1,234 rows of an epoch are retrieved ads, not logged ones." in lines
    assert not any("retrieved" in line for line in training_lines({"ranking": TRAIN}))
