"""The blend's weights: the towers serve along only if held-out rows gain by them."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from torchrec_adrec.arrays import Float64s
from torchrec_adrec.distributed.checkpoint_files import Checkpoint, attach
from torchrec_adrec.runtime.files import Origin
from torchrec_adrec.tasks.blend import ALONE
from torchrec_adrec.training.blend import BlendFit, fit_blend

ROWS = 4000
ORIGIN = Origin(step=1, weights="0" * 16)
DRAW = np.random.default_rng(0)
# Two independent halves of what there is to know, and noise.
FIRST, SECOND, NOISE = (DRAW.normal(size=ROWS) for _ in range(3))
CLICKS = (DRAW.random(ROWS) < expit(FIRST + SECOND - 1)).astype(np.float64)


def fitted(ranker: Float64s, towers: Float64s, rows: int = ROWS) -> BlendFit:
    return fit_blend(ranker[:rows], towers[:rows], CLICKS[:rows], ORIGIN)


def test_what_each_knows_of_the_other_is_blended() -> None:
    """In any scale: a ranker of half the slope gets twice the weight."""
    one, half = fitted(FIRST, SECOND), fitted(FIRST / 2, SECOND)
    assert one.blend.serves == "blend" and one.blend.origin == ORIGIN
    assert one.blend.ranker == pytest.approx(1, abs=0.1)
    assert one.blend.towers == pytest.approx(1, abs=0.1)
    assert one.blend.intercept == pytest.approx(-1, abs=0.1)
    assert half.blend.ranker == pytest.approx(2 * one.blend.ranker, rel=1e-3)
    assert one.gain > 10 * one.error > 0


def test_towers_that_add_nothing_are_left_out() -> None:
    """Noise, what the ranker knows already, and the reverse of the truth."""
    for towers in (NOISE, FIRST, -SECOND):
        kept = fitted(FIRST, towers)
        assert kept.blend.serves == "ranker" and kept.blend.towers == 0
        assert (kept.blend.ranker, kept.blend.intercept) == (1, 0)
        assert kept.rows == ROWS


def test_a_blend_without_the_towers_is_the_ranker_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torchrec_adrec.training.blend.DEVIATIONS", -1e9)
    assert fitted(FIRST / 2, -SECOND).blend == ALONE


def test_what_does_not_hold_later_is_left_out() -> None:
    """Right in the first half of the rows, the reverse in the second one."""
    turned = np.where(np.arange(ROWS) < ROWS // 2, SECOND, -SECOND)
    kept = fitted(FIRST, turned)
    assert kept.gain < 0 and kept.blend.serves == "ranker"


def test_the_towers_serve_where_the_ranker_knows_nothing() -> None:
    kept = fitted(-FIRST, SECOND)
    assert kept.blend.serves == "towers" and kept.blend.ranker == 0


def test_a_few_rows_choose_nothing() -> None:
    kept = fitted(FIRST, SECOND, rows=200)
    assert min(CLICKS[:200].sum(), 200 - CLICKS[:200].sum()) < 100
    assert kept.blend.serves == "ranker" and kept.error == 0


def test_rows_without_a_click_label_have_no_say() -> None:
    clicks = np.append(CLICKS, np.full(50, np.nan))
    first, second = (np.append(x, np.full(50, 99.0)) for x in (FIRST, SECOND))
    assert fit_blend(first, second, clicks, ORIGIN) == fitted(FIRST, SECOND)


def test_a_second_file_beside_a_checkpoint_keeps_the_hash_of_the_first(
    tmp_path: Path,
) -> None:
    """Blend and calibration are both added to a checkpoint that was opened once."""
    (tmp_path / "hashes.json").write_text('{"state.json": "0"}')
    opened = Checkpoint(tmp_path, {"step": 1}, {})
    attach(opened, "blend.json", 1)
    attach(opened, "calibration.json", 2)
    hashes = json.loads((tmp_path / "hashes.json").read_text())
    assert set(hashes) == {"state.json", "blend.json", "calibration.json"}
