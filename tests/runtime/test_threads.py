"""How threads wait, in processes of their own: torch reads it once."""

import os
import subprocess
import sys

from conftest import REPOSITORY

CODE = """
import os
from torchrec_adrec.runtime.threads import keep_threads_awake
{before}
keep_threads_awake()
print(os.environ["OMP_WAIT_POLICY"])
"""


def run(before: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | more
    command = [sys.executable, "-c", CODE.format(before=before)]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=REPOSITORY
    )


def test_threads_stay_awake_unless_the_user_wants_them_asleep() -> None:
    assert run().stdout == "active\n"
    assert run(OMP_WAIT_POLICY="passive").stdout == "passive\n"


def test_after_torch_it_is_too_late() -> None:
    assert "torch has been imported" in run("import torch").stderr


def test_training_sets_it_before_torch_is_there() -> None:
    code = "import os, sys; sys.argv = ['adrec', 'train', 'retrieval', '--out', '/no'];"
    code += (
        "import runpy\ntry: runpy.run_module('torchrec_adrec', run_name='__main__')\n"
    )
    code += "except SystemExit: print(os.environ['OMP_WAIT_POLICY'])"
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=REPOSITORY
    )
    assert done.stdout == "active\n" and "imported" not in done.stderr, done.stderr
