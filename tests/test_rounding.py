"""The measure of rounding itself, and whether other processors are imitated at all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from planted import smooth
from processors import CORES, environment, margins
from rounding import FAULT, MULTIPLE, Results, Rounding
from torch import nn


def off_by(change: float) -> Results:
    weights = {"a": torch.tensor([1.0, 2.0 + change]), "none": torch.empty(0)}
    return {"weights": weights, "losses": {"b": torch.tensor(3.0)}}


@pytest.fixture
def rounding() -> Rounding:
    return Rounding("a test", off_by(0), off_by(1e-4), off_by(-2e-4))


def test_the_noise_is_the_largest_difference_and_never_nothing(
    rounding: Rounding,
) -> None:
    assert rounding.noise["weights"] == pytest.approx(2e-4, rel=1e-2)
    assert 0 < rounding.noise["losses"] < 1e-6


@pytest.mark.parametrize("change", [2e-4 * MULTIPLE * 1.1, torch.nan])
def test_what_is_no_rounding_is_refused_by_name(
    rounding: Rounding, change: float
) -> None:
    rounding.holds("near", off_by(2e-4 * MULTIPLE * 0.9))
    with pytest.raises(AssertionError, match=r"a test, far: weights differ .* all a"):
        rounding.holds("far", off_by(change))


def test_a_fault_that_rounding_would_hide_is_refused(rounding: Rounding) -> None:
    rounding.sees("large", off_by(2e-4 * FAULT * 1.1))
    with pytest.raises(AssertionError, match=r"small is .* would not find it"):
        rounding.sees("small", off_by(2e-4 * FAULT * 0.9))


def test_smooth_towers_have_no_kink() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    smooth(model)
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    with pytest.raises(AssertionError):
        smooth(model)


def test_a_rank_has_the_threads_of_other_cores(tmp_path: Path) -> None:
    code = "import torch; from torchrec_adrec.distributed.process import process_group"
    code += "\nwith process_group('cpu'): print(torch.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({CORES: "3", "OMP_NUM_THREADS": "2"}, tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "3\n", done.stderr


def test_margins_are_the_farthest_right_and_the_nearest_fault() -> None:
    printed = """
    two ranks: weights 1 (1.5 times), losses 1 (2.0 times)
    planted: one: weights 1 (0.5 times), losses 1 (1,234.0 times)
    planted: other: weights 1 (80.0 times), losses 1 (2.0 times)
    """
    assert margins(printed) == "right within 2.0 times the noise, faults beyond 80"
