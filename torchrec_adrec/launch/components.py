"""torchx components of this package.

    torchx run -s local_cwd torchrec_adrec/launch/components.py:ddp -j 1x2 -- train \
        retrieval --out runs/x

torchx runs this file by its path, so it imports nothing of the package.
"""

import sys
from pathlib import Path
from shlex import quote

from torchx import specs
from torchx.components import dist

LAUNCHER = "torchrun "
# Takes torchrun's words, and starts nothing again that was refused.
AGENT = "python -m torchrec_adrec.launch.agent "
# The environment of this torchx need not be the activated one; where the job runs
# elsewhere and there is no such folder, PATH says the same without it.
ENVIRONMENT = f'PATH={quote(str(Path(sys.executable).parent))}:"$PATH" '
# After a restart the ranks of several nodes would find the addresses of dead ones in a
# store that the agents keep; of one node `distributed/process.py` knows the attempt.
NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def ddp(
    *words: str,
    j: str = "1x2",
    max_restarts: int = 3,
    grace_seconds: int = 120,
    name: str = "adrec",
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 1024,
    h: str = "",
    max_retries: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """A command of adrec on many ranks, started again by itself when one dies.

    torchx's own `dist.ddp` with what it cannot pass on: its `max_retries` is the
    scheduler's, and a killed rank ends a local job.

    Args:
        words: the command, as: train retrieval --out runs/x
        j: NODESxRANKS, or MIN:MAXxRANKS
        max_restarts: times that all ranks are started again after one died
        grace_seconds: from SIGTERM to SIGKILL: training saves in this time
        name: name of the job
        cpu: cores of a node
        gpu: GPUs of a node
        memory_mb: memory of a node
        h: a named resource of torchx, instead of cpu, gpu and memory_mb
        max_retries: times that the scheduler starts the whole job again
        rdzv_port: port of the first node where the nodes meet
    """
    job = dist.ddp(
        *words,
        m="torchrec_adrec",
        name=name,
        h=h or None,
        cpu=cpu,
        gpu=gpu,
        memMB=memory_mb,
        j=j,
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        env=dict(NEW_STORE) if dist.parse_nnodes(j)[1] > 1 else None,
    )
    (role,) = job.roles
    shell, line = role.args  # bash -c "torchrun ..."
    assert line.startswith(LAUNCHER), f"torchx launches by {line.split()[0]}"
    options = f"--max_restarts {max_restarts} --shutdown_timeout {grace_seconds} "
    line = AGENT + options + line.removeprefix(LAUNCHER)
    role.args = [shell, ENVIRONMENT + line]
    return job
