"""Ranks wait for one that works alone, however long it takes."""

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

# The timeout is also that of finding one another, which a busy machine needs time for.
WORK = """
import time
from datetime import timedelta
from torchrec_adrec.distributed.process import process_group

with process_group("cpu", timeout=timedelta(seconds=20)) as process:
    if process.is_first:
        time.sleep(25)
    process.barrier()
    print("met")
"""


@pytest.mark.slow
def test_a_barrier_outlasts_the_timeout_of_collectives(
    ranks_script: Callable[[int, str], CompletedProcess[str]],
) -> None:
    done = ranks_script(2, WORK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["met", "met"]
