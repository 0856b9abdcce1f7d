"""GPUs by name, and clusters of them as a user writes them: `8xH100-80GB`."""

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
    """One kind of GPU; units and sources stand in `gpus.yaml`."""

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
        """Operations/s of products in `train.precision`; auto: bfloat16."""
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
        """All GPUs; each is one rank."""
        return self.per_node * self.nodes

    @property
    def bandwidth(self) -> float:
        """Bytes/s that a rank sends where it meets the slowest link on its way."""
        slowest = self.gpu.intra_node if self.nodes == 1 else self.gpu.inter_node
        return slowest * 1e9

    def __str__(self) -> str:
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{self.ranks} x {self.gpu.name} ({nodes} of {self.per_node})"

    def topology(self) -> Topology:
        """What TorchRec's planner asks of a cluster."""
        gpu = self.gpu
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
    """All GPUs that we have figures of."""
    text = files("torchrec_adrec.planning").joinpath("gpus.yaml").read_text()
    return {name: Gpu(name=name, **of) for name, of in yaml.safe_load(text).items()}


def with_prices(prices: Sequence[str]) -> dict[str, Gpu]:
    """All GPUs, some at a price of the user's.

    Args:
        prices: GPU=DOLLARS an hour, as H100-80GB=2.50.

    Raises:
        ConfigError: no such GPU, or no positive number.
    """
    priced = dict(gpus())
    for word in prices:
        name, _, dollars = word.partition("=")
        if name not in priced or not re.fullmatch(r"\d+(\.\d+)?", dollars):
            raise ConfigError(
                f"--price {word!r}: expected GPU=DOLLARS an hour, as H100-80GB=2.50;"
                f" known GPUs: {', '.join(priced)}"
            )
        priced[name] = replace(priced[name], dollars=float(dollars))
    return priced


def parse(
    text: str, nodes: int | None = None, known: Mapping[str, Gpu] | None = None
) -> Cluster:
    """A cluster as it is written.

    `8xH100-80GB` is a node of 8; with `nodes` there are so many of them. A count above
    what a node holds is the number of all GPUs, in full nodes.

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
    """`count` GPUs a node, or, if that is more than a node holds, in all."""
    each = gpu.gpus_per_node
    if count <= each:
        return Cluster(gpu, count, nodes or 1)
    if nodes is not None or count % each:
        raise ConfigError(
            f"{text!r}: a node holds {each} GPUs; with --nodes give at most {each} a"
            f" node, without it a multiple of {each} is the number of all GPUs"
        )
    return Cluster(gpu, each, count // each)
