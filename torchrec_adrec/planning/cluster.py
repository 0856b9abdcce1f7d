"""GPUs by name, and clusters of them as a user writes them: `8xH100-80GB`.

The figures of each GPU are those of its data sheet, in `gpus.yaml`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import yaml
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    TopologyFactory,
    TrainerConfig,
)

from torchrec_adrec.errors import ConfigError

GIB = 2**30
GB_S = 1e9 / 1e3  # TorchRec counts bytes per millisecond


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU; `gpus.yaml` has the units and sources of its figures."""

    name: str
    memory: float
    hbm: float
    fp32: float
    tf32: float
    bf16: float
    fp16: float
    intra_node: float
    inter_node: float
    host_bus: float
    host_memory: float
    gpus_per_node: int
    dollars: float

    def peak(self, precision: str) -> float:
        """Peak operations/s of products in `train.precision`; auto is bfloat16."""
        tflops = {"float32": self.fp32, "tf32": self.tf32}.get(precision, self.bf16)
        return tflops * 1e12


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines of `per_node` GPUs."""

    gpu: Gpu
    per_node: int
    nodes: int

    @property
    def ranks(self) -> int:
        """The number of all GPUs; each is one rank."""
        return self.per_node * self.nodes

    @property
    def bandwidth(self) -> float:
        """Bytes/s that a rank sends over the slowest link between it and another."""
        slowest = self.gpu.intra_node if self.nodes == 1 else self.gpu.inter_node
        return slowest * 1e9

    def __str__(self) -> str:
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{self.ranks} x {self.gpu.name} ({nodes} of {self.per_node})"

    def topology(self) -> Topology:
        """Describe the cluster to TorchRec's planner."""
        gpu = self.gpu
        # TorchRec's default is 32 GB a GPU, whatever GPU is meant.
        return TopologyFactory.create_topology(
            TrainerConfig(world_size=self.ranks, local_world_size=self.per_node),
            HardwareConfig(
                hbm_cap_bytes=int(gpu.memory * GIB),
                ddr_cap_bytes=int(gpu.host_memory * GIB),
                hbm_mem_bw=gpu.hbm * GB_S,
                intra_host_bw=gpu.intra_node * GB_S,
                inter_host_bw=gpu.inter_node * GB_S,
                hbm_to_ddr_mem_bw=gpu.host_bus * GB_S,
            ),
            KernelConfig(compute_device="cuda"),
        )


@cache
def gpus() -> dict[str, Gpu]:
    """Read all GPUs that we have figures of, by name."""
    text = files("torchrec_adrec.planning").joinpath("gpus.yaml").read_text()
    figures = yaml.safe_load(text)
    return {name: Gpu(name=name, **figures[name]) for name in figures}


def with_prices(prices: Sequence[str]) -> dict[str, Gpu]:
    """Read all GPUs and put the user's prices in place of the assumed ones.

    Args:
        prices: GPU=DOLLARS an hour, as H100-80GB=2.50.

    Raises:
        ConfigError: no such GPU, or no positive number.
    """
    priced = dict(gpus())
    for price in prices:
        name, _, dollars = price.partition("=")
        if name not in priced or not re.fullmatch(r"\d+(\.\d+)?", dollars):
            raise ConfigError(
                f"--price {price!r}: expected GPU=DOLLARS an hour, as H100-80GB=2.50;"
                f" known GPUs: {', '.join(priced)}"
            )
        priced[name] = replace(priced[name], dollars=float(dollars))
    return priced


def parse(
    text: str, nodes: int | None = None, known: Mapping[str, Gpu] | None = None
) -> Cluster:
    """Read a cluster as a user writes it.

    `8xH100-80GB` is a node of 8 GPUs; with `nodes` there are so many such nodes. A
    count above what a node holds is the number of all GPUs, in full nodes.

    Args:
        text: COUNTxGPU.
        nodes: how many nodes of COUNT GPUs.
        known: GPUs by name, default those of `gpus.yaml`.

    Raises:
        ConfigError: no such GPU, or a count that makes no full nodes.
    """
    match = re.fullmatch(r"([1-9]\d*)x(.+)", text)
    if match is None:
        raise ConfigError(f"{text!r}: expected COUNTxGPU, as 8xH100-80GB")
    known = gpus() if known is None else known
    count, name = int(match[1]), match[2]
    if name not in known:
        raise ConfigError(
            f"{text!r}: no figures of {name!r}; known: {', '.join(known)}"
        )
    return of_size(known[name], count, nodes, text)


def of_size(gpu: Gpu, count: int, nodes: int | None, text: str) -> Cluster:
    """Make a cluster of `count` GPUs a node, or in all if no node holds so many.

    Args:
        gpu: the kind of all GPUs.
        count: a node's, or all.
        nodes: how many nodes; None where `count` is of all.
        text: as the user wrote it, for the error.

    Raises:
        ConfigError: a count that makes no full nodes.
    """
    # "64xH100" can only mean all GPUs, "4xH100" only a part of one node.
    each = gpu.gpus_per_node
    if count <= each:
        return Cluster(gpu, count, nodes or 1)
    if nodes is not None or count % each:
        raise ConfigError(
            f"{text!r}: a node holds {each} GPUs; with --nodes give at most {each} a"
            f" node, without it a multiple of {each} is the number of all GPUs"
        )
    return Cluster(gpu, each, count // each)
