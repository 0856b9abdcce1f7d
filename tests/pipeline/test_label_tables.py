"""The report shows each figure of a label, with its interval if it has one."""

import numpy as np

from torchrec_adrec.evaluation.label_report import judge_label
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
