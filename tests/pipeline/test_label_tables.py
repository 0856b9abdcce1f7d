"""The report shows each figure of a label, with its interval if it has one."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from torchrec_adrec.evaluation.label_report import judge_label
from torchrec_adrec.evaluation.pictures import reliability_picture
from torchrec_adrec.evaluation.row_keys import RowKeys
from torchrec_adrec.pipeline.label_tables import label_tables


def test_every_figure_and_every_bin_is_a_line() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(400)
    label = (rng.random(400) < p).astype(np.float64)
    user, names = np.arange(400) % 60, np.array(["text", "image"] * 200)
    details = judge_label("binary", p, label, RowKeys(user, "C2", names))
    lines = list(label_tables({"click": details}))
    assert lines[0] == "### click"
    low, high = details["intervals"]["auc"]
    auc = details["figures"]["auc"]
    assert f"| auc | {auc:.4f} | {low:.4f} to {high:.4f} |" in lines
    assert f"| ece | {details['figures']['ece']:.4f} |  |" in lines
    for name in ("grouped_auc", "ndcg@5", "map@10", "mrr", "slope", "calibration"):
        assert any(line.startswith(f"| {name} |") for line in lines)
    assert sum(line.startswith(f"| {i} | 40 |") for i in range(11) for line in lines)
    assert any(line.startswith("| image | 200 |") for line in lines)
    assert any("Lists of 60 users" in line for line in lines)


def test_a_calibrated_label_shows_what_it_was_before() -> None:
    p, label = np.linspace(0.1, 0.9, 50), np.tile([0.0, 1], 25)
    details = judge_label("binary", p, label, RowKeys())
    details["uncalibrated"] = details["figures"] | {"ece": 0.4321}
    lines = list(label_tables({"click": details}))
    assert "| figure | test | 95% interval | uncalibrated |" in lines
    assert any(line.startswith("| ece |") and "| 0.4321 |" in line for line in lines)
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables[: 2 + len(details["figures"])]} == {5}


def test_the_picture_has_a_panel_for_each_label(tmp_path: Path) -> None:
    p, label = np.linspace(0.1, 0.9, 50), np.tile([0.0, 1], 25)
    bins = judge_label("binary", p, label, RowKeys())["bins"]
    sizes = {}
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        panels = {f"label {i}": bins for i in range(count)}
        reliability_picture(panels, "ranking: test split", path)
        sizes[count] = imread(path).shape
    assert sizes[2][1] == 2 * sizes[1][1] and sizes[2][0] == sizes[1][0]
