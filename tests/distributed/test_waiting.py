"""Ranks wait for one that works alone, however long it takes."""

from collections.abc import Callable
from subprocess import CompletedProcess

WORK = """
import time
from datetime import timedelta
from torchrec_adrec.distributed.process import process_group

with process_group("cpu", timeout=timedelta(seconds=1)) as process:
    if process.is_first:
        time.sleep(3)
    process.barrier()
    print("met")
"""


def test_a_barrier_outlasts_the_timeout_of_collectives(
    ranks_script: Callable[[int, str], CompletedProcess[str]],
) -> None:
    done = ranks_script(2, WORK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["met", "met"]
