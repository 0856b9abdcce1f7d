"""Rows that are written into sharded tables stand where every plan looks for them."""

import subprocess
from collections.abc import Callable

import numpy as np
import torch
from fifty_steps import CASES, SCHEMAS, config, set_start, start_of, whole_weights

from torchrec_adrec.distributed.process import Process
from torchrec_adrec.distributed.table_rows import set_rows
from torchrec_adrec.modules.embeddings import table_of
from torchrec_adrec.tasks.sharded import build

SCRIPT = """
from test_table_rows import check
from torchrec_adrec.distributed.process import process_group

with process_group("cpu") as process:
    check(process)
"""
Run = Callable[[int, str], subprocess.CompletedProcess[str]]


def check(process: Process) -> None:
    """In each way to shard, the given rows are the given ones, the others as before."""
    for name in ("mix", "attention, by rows", "gru, by columns"):
        case = CASES[name]
        settings = config(*case.overrides, encoder=case.encoder)
        model = build("retrieval", SCHEMAS[case.encoder], settings, process).model
        set_start(model)
        given = {}
        for parameter, value in model.state_dict().items():
            if table_of(parameter):
                rows = np.arange(1, value.size()[0], 3)[::-1].copy()
                shape = len(rows), value.size()[1]
                numbers = np.arange(shape[0] * shape[1], dtype=np.float32)
                given[parameter] = rows, numbers.reshape(shape)
        assert given
        set_rows(model, given)
        for parameter, weight in whole_weights(model).items():
            expected = start_of(parameter, weight.shape)
            if parameter in given:
                rows, vectors = given[parameter]
                expected[torch.from_numpy(rows)] = torch.from_numpy(vectors)
            assert torch.equal(weight, expected), f"{name}: {parameter}"


def test_tables_cut_by_rows_and_by_columns_on_two_ranks(ranks_script: Run) -> None:
    done = ranks_script(2, SCRIPT)
    assert done.returncode == 0, done.stderr[-4000:]
