"""Sharded training on two ranks is training on one: same weights, same losses."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torchrec_adrec.config import Config
from torchrec_adrec.distributed import checkpoint
from torchrec_adrec.schema import Schema
from torchrec_adrec.tasks import build_task

SCRIPT = """
from pathlib import Path
from torchrec_adrec.config import load_config
from torchrec_adrec.distributed.process import process_group
from torchrec_adrec.sharded_task import final_checkpoint
from torchrec_adrec.train import Trainer

run, out = Path({run!r}), Path({out!r})
words = ["towers.dropout=0", "ranker.dropout=0", "ranker.tables={tables}"]
config = load_config(run / "config.yaml", words)
with process_group("cpu") as process:
    Trainer({task!r}, config, process, run / "data", out).fit()
"""


@pytest.mark.parametrize(
    ("task", "tables"), [("retrieval", "scratch"), ("ranking", "frozen")]
)
def test_fifty_steps_from_one_checkpoint(
    task: str,
    tables: str,
    finished_run: Path,
    small_config: Config,
    tmp_path: Path,
    ranks_script: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    """Dropout is off, for its masks are drawn per rank."""
    schema = Schema.load(finished_run / "data/schema.json")
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        first = sorted((finished_run / task / "checkpoints").glob("step-*"))[0]
        shutil.copytree(first, out / "checkpoints" / first.name)
        text = SCRIPT.format(
            run=str(finished_run), out=str(out), task=task, tables=tables
        )
        done = ranks_script(ranks, text)
        assert done.returncode == 0, done.stderr
        last = checkpoint.latest(out / "checkpoints")
        assert last is not None and last.step == 150
        model = build_task(task, schema, small_config)
        checkpoint.load(last, model, schema)
        found.append((model, last.state["last_step_loss"]))
    (one, one_loss), (two, two_loss) = found
    assert one_loss == pytest.approx(two_loss, abs=1e-5)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)
