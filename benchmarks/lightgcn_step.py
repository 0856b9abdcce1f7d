"""The two parts that take a step of LightGCN its time, each beside the plain way.

    python benchmarks/lightgcn_step.py

A product with the graph as a bag of embeddings and as a sparse tensor of torch, and the
loss with its gradient in blocks of clicks and in one piece. Clicks are drawn, as many
as Gowalla has; ratios are medians of interleaved rounds on one thread.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from timing import interleave, keep_result, ratio
from torch import Tensor

from torchrec_adrec.evaluation.classics import lightgcn
from torchrec_adrec.evaluation.classics.lightgcn import (
    Graph,
    LightGCNSettings,
    graph_of,
)

USERS, ADS, CLICKS, BATCH = 29_858, 40_981, 810_128, 16_384


def main() -> None:
    """Measure and keep."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rounds", type=int, default=7)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    times: dict[str, dict[str, float]] = {}
    seconds: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, dict[str, Callable[[], Any]]] = {
        "product": products(),
        "loss": losses(),
    }
    for name, ways in parts.items():
        plain, ours = ways
        seconds[name] = interleave(ways, args.rounds)
        value = round(ratio(seconds[name], plain, ours), 2)
        times[name] = {f"{plain} / {ours}": value}
    keep_result("lightgcn_step", {"seed": 0, "times": times, "seconds": seconds})


def products() -> dict[str, Callable[[], Any]]:
    """Both ways to multiply the graph with vectors; refuses ways that differ."""
    rng = np.random.default_rng(0)
    pairs = (rng.integers(USERS, size=CLICKS), rng.integers(ADS, size=CLICKS))
    graph = graph_of(csr_matrix((np.ones(CLICKS), pairs), shape=(USERS, ADS)))
    sparse = as_tensor(graph)
    vectors = torch.randn(USERS + ADS, LightGCNSettings.dim)
    torch.testing.assert_close(graph @ vectors, sparse @ vectors)
    return {
        "sparse tensor": lambda: sparse @ vectors,
        "bag of embeddings": lambda: graph @ vectors,
    }


def as_tensor(graph: Graph) -> Tensor:
    """Return the graph as torch's compressed sparse rows."""
    size = len(graph.offsets) - 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            *(graph.offsets, graph.columns, graph.weights, (size, size)),
            check_invariants=True,
        )


def losses() -> dict[str, Callable[[], Any]]:
    """Loss and gradient of a batch, in one block and in the usual ones."""
    settings, usual = LightGCNSettings(), lightgcn.BLOCK
    vectors = torch.randn(USERS + ADS, settings.dim, requires_grad=True)
    user = torch.randint(USERS, (BATCH,))
    ad = USERS + torch.randint(ADS, (BATCH,))
    drawn = USERS + torch.randint(ADS, (settings.negatives,))

    def in_blocks(size: int) -> None:
        lightgcn.BLOCK = size
        lightgcn._loss(vectors, user, ad, drawn, settings).backward()

    return {
        "in one piece": lambda: in_blocks(BATCH),
        "in blocks": lambda: in_blocks(usual),
    }


if __name__ == "__main__":
    main()
