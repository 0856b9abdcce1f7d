"""torchx components: one for each stage of a run, `pipeline` for all, `ddp` for any.

    torchx run -s local_cwd adrec.train --task retrieval --out runs/x -j 1x2

Installed they are `adrec.NAME`, else `launch/components.py:NAME`. torchx runs this file
by its path, so it imports nothing of the package, and types here must be plain ones.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import torchx
from torchx import specs
from torchx.components import dist, utils

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


def prepare(
    *overrides: str,
    out: str,
    config: str = "",
    j: str = "1x1",
    cpu: int = 2,
    memory_mb: int = 1024,
    image: str = torchx.IMAGE,
    mounts: str = "",
) -> specs.AppDef:
    """Raw files to Parquet, catalog, schema, report; ranks share several files.

    Args:
        overrides: settings, as data.min_count=2
        out: folder of the run
        config: YAML file of settings
        j: NODESxRANKS
        cpu: cores of a node
        memory_mb: memory of a node
        image: container image, for schedulers that run one
        mounts: what the container sees, as type=volume,src=CLAIM,dst=/runs
    """
    words = _command(["prepare"], out, config, overrides)
    job = ddp(
        *words, j=j, cpu=cpu, memory_mb=memory_mb, name="adrec-prepare", max_restarts=0
    )
    return _in_container(job, image, mounts)


def train(
    *overrides: str,
    task: str,
    out: str,
    config: str = "",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 1024,
    image: str = torchx.IMAGE,
    mounts: str = "",
    max_restarts: int = 3,
    max_retries: int = 0,
) -> specs.AppDef:
    """Train the towers or the ranker on all ranks; resumes from its last checkpoint.

    Args:
        overrides: settings, as train.epochs=2
        task: retrieval or ranking
        out: folder of the run, with its data
        config: YAML file of settings
        j: NODESxRANKS
        cpu: cores of a node
        gpu: GPUs of a node
        memory_mb: memory of a node
        image: container image, for schedulers that run one
        mounts: what the container sees, as type=volume,src=CLAIM,dst=/runs
        max_restarts: times that all ranks are started again after one died
        max_retries: times that the scheduler starts the whole job again
    """
    words = _command(["train", _known(task)], out, config, overrides)
    job = ddp(
        *words,
        j=j,
        cpu=cpu,
        gpu=gpu,
        memory_mb=memory_mb,
        name=f"adrec-{task}",
        max_restarts=max_restarts,
        max_retries=max_retries,
    )
    return _in_container(job, image, mounts)


def export(
    *overrides: str,
    out: str,
    config: str = "",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 1024,
    image: str = torchx.IMAGE,
    mounts: str = "",
) -> specs.AppDef:
    """Encode every ad on all ranks; measure recall over the whole catalog.

    Args:
        overrides: settings, as seed=1
        out: folder of the run, with the trained towers
        config: YAML file of settings
        j: NODESxRANKS
        cpu: cores of a node
        gpu: GPUs of a node
        memory_mb: memory of a node
        image: container image, for schedulers that run one
        mounts: what the container sees, as type=volume,src=CLAIM,dst=/runs
    """
    words = _command(["export"], out, config, overrides)
    job = ddp(*words, j=j, cpu=cpu, gpu=gpu, memory_mb=memory_mb, name="adrec-export")
    return _in_container(job, image, mounts)


def index(
    *overrides: str,
    out: str,
    config: str = "",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 1024,
    image: str = torchx.IMAGE,
    mounts: str = "",
) -> specs.AppDef:
    """Build the FAISS shards on all ranks; publish them only past the recall gate.

    Args:
        overrides: settings, as index.shards=8
        out: folder of the run, with the exported vectors
        config: YAML file of settings
        j: NODESxRANKS
        cpu: cores of a node
        gpu: GPUs of a node
        memory_mb: memory of a node
        image: container image, for schedulers that run one
        mounts: what the container sees, as type=volume,src=CLAIM,dst=/runs
    """
    words = _command(["index"], out, config, overrides)
    job = ddp(*words, j=j, cpu=cpu, gpu=gpu, memory_mb=memory_mb, name="adrec-index")
    return _in_container(job, image, mounts)


def evaluate(
    *overrides: str,
    task: str,
    out: str,
    config: str = "",
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 1024,
    image: str = torchx.IMAGE,
    mounts: str = "",
) -> specs.AppDef:
    """Test figures of a trained model on any number of ranks, as JSON.

    Args:
        overrides: settings, as train.eval_batch_size=8192
        task: retrieval or ranking
        out: folder of the run, with the trained model
        config: YAML file of settings
        j: NODESxRANKS
        cpu: cores of a node
        gpu: GPUs of a node
        memory_mb: memory of a node
        image: container image, for schedulers that run one
        mounts: what the container sees, as type=volume,src=CLAIM,dst=/runs
    """
    words = _command(["evaluate", _known(task)], out, config, overrides)
    job = ddp(*words, j=j, cpu=cpu, gpu=gpu, memory_mb=memory_mb, name="adrec-evaluate")
    return _in_container(job, image, mounts)


def pipeline(
    *overrides: str,
    out: str,
    config: str = "",
    ranks: int = 2,
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 1024,
    image: str = torchx.IMAGE,
    mounts: str = "",
) -> specs.AppDef:
    """All stages of a run on one node, skipping those whose inputs have not changed.

    Args:
        overrides: settings, as train.epochs=2
        out: folder of the run
        config: YAML file of settings
        ranks: processes of the stages that take several
        cpu: cores of the node
        gpu: GPUs of the node
        memory_mb: memory of the node
        image: container image, for schedulers that run one
        mounts: what the container sees, as type=volume,src=CLAIM,dst=/runs
    """
    words = _command(["run", "-j", f"1x{ranks}"], out, config, overrides)
    job = utils.python(*words, m="torchrec_adrec", cpu=cpu, gpu=gpu, memMB=memory_mb)
    job.name = "adrec-pipeline"
    (role,) = job.roles
    role.entrypoint = "bash"
    role.args = ["-c", ENVIRONMENT + shlex.join(["python", *role.args])]
    return _in_container(job, image, mounts)


def _known(task: str) -> str:
    """Refuse a misspelt task here, not on the cluster an hour later."""
    if task not in ("retrieval", "ranking"):
        raise ValueError(f"--task {task}: expected retrieval or ranking")
    return task


def _command(
    words: Sequence[str], out: str, config: str, overrides: Sequence[str]
) -> Sequence[str]:
    return [*words, "--out", out, *(["--config", config] if config else []), *overrides]


def _in_container(job: specs.AppDef, image: str, mounts: str) -> specs.AppDef:
    for role in job.roles:
        role.image = image
        role.mounts = specs.parse_mounts(mounts.split(",") if mounts else [])
    return job
