"""Components of torchx: one for each stage, `pipeline` for all, `ddp` for any command.

    torchx run -s local_cwd adrec.train --task retrieval --out runs/x -j 1x2

Once the package is installed they are called `adrec.NAME`, in a checkout
`launch/components.py:NAME`. torchx loads this file by its path, without the package, so
it imports nothing of it; and torchx makes options only of plain types.
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
# Takes torchrun's arguments, and starts nothing again that was refused.
AGENT = "python -m torchrec_adrec.launch.agent "
# The job needs the Python that runs this torchx, which need not be the activated one.
# On another machine there may be no such folder; then the rest of PATH decides.
ENVIRONMENT = f'PATH={quote(str(Path(sys.executable).parent))}:"$PATH" '
# The agents of several nodes keep a store in which restarted ranks would find the
# addresses of dead ones. On one node `distributed/process.py` avoids that by itself.
NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def ddp(
    *args: str,
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
    """Run a command of adrec on many ranks, which start again when one dies.

    This is torchx's own `dist.ddp` with two options that it does not have. Its
    `max_retries` only reaches a scheduler, and a local job ends with a killed rank.

    Args:
        args: the command, as: train retrieval --out runs/x
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
        *args,
        m="torchrec_adrec",
        name=name,
        h=h or None,
        cpu=cpu,
        gpu=gpu,
        memMB=memory_mb,
        j=j,
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        # A copy: torchx adds to the environment of each job.
        env=dict(NEW_STORE) if dist.parse_nnodes(j)[1] > 1 else None,
    )
    # torchx has made: bash -c "torchrun ...". Its first word is replaced by our agent.
    (role,) = job.roles
    shell, line = role.args
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
    """Turn raw files into Parquet, catalog, schema, report; ranks share the files.

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
    args = _command(["prepare"], out, config, overrides)
    job = ddp(
        *args, j=j, cpu=cpu, memory_mb=memory_mb, name="adrec-prepare", max_restarts=0
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
    """Train the towers or the ranker on all ranks, from the last checkpoint if any.

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
    args = _command(["train", _checked(task)], out, config, overrides)
    job = ddp(
        *args,
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
    args = _command(["export"], out, config, overrides)
    job = ddp(*args, j=j, cpu=cpu, gpu=gpu, memory_mb=memory_mb, name="adrec-export")
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
    args = _command(["index"], out, config, overrides)
    job = ddp(*args, j=j, cpu=cpu, gpu=gpu, memory_mb=memory_mb, name="adrec-index")
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
    """Print the test figures of a trained model as JSON, on any number of ranks.

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
    args = _command(["evaluate", _checked(task)], out, config, overrides)
    job = ddp(*args, j=j, cpu=cpu, gpu=gpu, memory_mb=memory_mb, name="adrec-evaluate")
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
    """Run all stages on one node, skipping those whose inputs have not changed.

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
    args = _command(["run", "-j", f"1x{ranks}"], out, config, overrides)
    job = utils.python(*args, m="torchrec_adrec", cpu=cpu, gpu=gpu, memMB=memory_mb)
    job.name = "adrec-pipeline"
    (role,) = job.roles
    # Through a shell, as `ddp` does, so that PATH is set where the job runs.
    role.entrypoint = "bash"
    role.args = ["-c", ENVIRONMENT + shlex.join(["python", *role.args])]
    return _in_container(job, image, mounts)


def _checked(task: str) -> str:
    """Refuse a misspelt task now and not on the cluster an hour later."""
    if task not in ("retrieval", "ranking"):
        raise ValueError(f"--task {task}: expected retrieval or ranking")
    return task


def _command(
    command: Sequence[str], out: str, config: str, overrides: Sequence[str]
) -> Sequence[str]:
    settings = ["--config", config] if config else []
    return [*command, "--out", out, *settings, *overrides]


def _in_container(job: specs.AppDef, image: str, mounts: str) -> specs.AppDef:
    for role in job.roles:
        role.image = image
        role.mounts = specs.parse_mounts(mounts.split(",") if mounts else [])
    return job
