"""Where the negatives of a step stand among the ads of all ranks."""

import pytest
import torch

from torchrec_adrec.losses.negatives import ALL, Negatives


def test_drawn_ads_stand_behind_the_rows_of_each_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ranks have two rows and one drawn ad each."""
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    cpu, alone = torch.device("cpu"), Negatives(in_batch=False)
    assert alone.columns(2, 3, cpu).tolist() == [2, 5]
    hidden = alone.hidden(2, 3, cpu)
    assert hidden is not None
    assert hidden.tolist() == [True, True, False, True, True, False]
    assert alone.draws(2, 3) == 2
    # With the ads of the rows all others are drawn, for each anchor but its own.
    assert ALL.columns(2, 3, cpu).tolist() == [0, 1, 2, 3, 4, 5]
    assert ALL.hidden(2, 3, cpu) is None and ALL.draws(2, 3) == 5
