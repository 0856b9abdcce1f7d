"""LightGCN: vectors of users and ads, smoothed over the graph of clicks.

He et al., SIGIR 2020. A layer replaces each vector by the sum of its neighbours', each
divided by the root of both degrees; the final vector is the mean over the layers, the
learnt vectors themselves among them. There are no other weights. The loss is a softmax
over drawn ads instead of one drawn ad (BPR): it reaches the same figures in far fewer
steps, of which each passes over the whole graph.

Shape letters: U users, N ads, D the length of a vector, B clicks of a batch, K drawn
ads.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import bmat, csr_matrix, diags
from torch import Tensor

from torchrec_adrec.evaluation.classics.factors import Vectors
from torchrec_adrec.evaluation.classics.interactions import binary

log = logging.getLogger(__name__)
BLOCK = 1024  # clicks whose logits are made at a time, so that they stay in the cache
AfterEpoch = Callable[[int, Vectors], None]


@dataclass(frozen=True)
class LightGCNSettings:
    """How LightGCN is trained.

    Attributes:
        dim: D.
        layers: of the graph.
        epochs: passes over the clicks.
        batch: clicks of a step, B.
        negatives: ads drawn for a batch, K, uniformly and shared by its clicks.
        temperature: of the softmax over cosines; 0: BPR on inner products, each click
            against one of the drawn ads.
        rate: of Adam.
        l2: penalty on the learnt vectors of a batch.
    """

    dim: int = 64
    layers: int = 3
    epochs: int = 20
    batch: int = 4096
    negatives: int = 1024
    temperature: float = 0.15
    rate: float = 0.01
    l2: float = 1e-6


@dataclass(frozen=True)
class Graph:
    """A symmetric sparse matrix, by rows.

    A row's weighted sum is a bag of embeddings, which FBGEMM makes 1.6 to 1.9 times as
    fast as torch multiplies a sparse tensor (`benchmarks/lightgcn_step.py`).

    Attributes:
        columns: of the entries, row after row.
        offsets: where each row begins, and the end of the last one.
        weights: of the entries.
    """

    columns: Tensor
    offsets: Tensor
    weights: Tensor

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply it with vectors, (U + N, D)."""
        return F.embedding_bag(
            self.columns,
            vectors,
            self.offsets,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )


class _Propagate(torch.autograd.Function):
    """A graph times vectors: as it is symmetric, its gradient is the same product."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, vectors: Tensor) -> Tensor:
        ctx.graph = graph
        return graph @ vectors

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.graph @ grads[0]


def graph_of(clicks: csr_matrix) -> Graph:
    """Make the graph of users and ads, normalised by both degrees, (U + N, U + N)."""
    table = binary(clicks)
    both = bmat([[None, table], [table.T, None]], format="csr")
    degree = np.asarray(both.sum(axis=1)).ravel()
    scale = diags(1 / np.sqrt(np.maximum(degree, 1)))
    graph = (scale @ both @ scale).tocsr().astype(np.float32)
    parts = (graph.indices, graph.indptr, graph.data)
    return Graph(*(torch.from_numpy(part) for part in parts))


def propagate(graph: Graph, vectors: Tensor, layers: int) -> Tensor:
    """Return the mean of the vectors over all layers, (U + N, D)."""
    total = vectors
    for _ in range(layers):
        vectors = _Propagate.apply(graph, vectors)  # type: ignore[no-untyped-call]
        total = total + vectors
    return total / (layers + 1)


def fit_lightgcn(
    clicks: csr_matrix,
    settings: LightGCNSettings,
    seed: int,
    after_epoch: AfterEpoch | None = None,
) -> Vectors:
    """Train LightGCN.

    Args:
        clicks: (U, N).
        settings: see there.
        seed: of vectors, order and draws.
        after_epoch: is given the number of each epoch, from 1, and its vectors.
    """
    torch.manual_seed(seed)
    users, ads = clicks.shape
    graph = graph_of(clicks)
    learnt = torch.nn.Parameter(0.1 * torch.randn(users + ads, settings.dim))
    optimizer = torch.optim.Adam([learnt], lr=settings.rate)
    rows = np.repeat(np.arange(users), np.diff(clicks.indptr))
    pairs = torch.from_numpy(np.stack([rows, clicks.indices.astype(np.int64)]))
    for epoch in range(1, settings.epochs + 1):
        total = 0.0
        order = torch.randperm(pairs.shape[1])
        batches = order.split(settings.batch)
        for batch in batches:
            vectors = propagate(graph, learnt, settings.layers)
            user, ad = pairs[:, batch]
            drawn = torch.randint(ads, (settings.negatives,))
            loss = _loss(vectors, user, users + ad, users + drawn, settings)
            touched = learnt[torch.cat([user, users + ad, users + drawn])]
            loss = loss + settings.l2 * touched.square().sum() / len(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
        log.info("LightGCN: epoch %d, loss %.4f", epoch, total / len(batches))
        if after_epoch is not None:
            after_epoch(epoch, _vectors(graph, learnt, clicks, settings))
    return _vectors(graph, learnt, clicks, settings)


def _loss(
    vectors: Tensor, user: Tensor, ad: Tensor, drawn: Tensor, settings: LightGCNSettings
) -> Tensor:
    if not settings.temperature:
        against = drawn[torch.arange(len(user)) % len(drawn)]
        gap = (vectors[user] * (vectors[ad] - vectors[against])).sum(dim=1)
        return -F.logsigmoid(gap).mean()
    u, a, d = (F.normalize(vectors[i], dim=1) for i in (user, ad, drawn))
    u = u / settings.temperature
    blocks = zip(u.split(BLOCK), a.split(BLOCK), ad.split(BLOCK), strict=True)
    of_blocks = [_softmax_loss(*block, d, drawn) for block in blocks]
    return torch.stack(of_blocks).sum() / len(user)


def _softmax_loss(u: Tensor, a: Tensor, ad: Tensor, d: Tensor, drawn: Tensor) -> Tensor:
    """Sum of the clicks' losses against the drawn ads."""
    # A drawn ad may be the clicked one, which would be told apart from itself.
    against = (u @ d.T).masked_fill_(ad[:, None] == drawn, -torch.inf)
    return F.softplus(against.logsumexp(dim=1) - (u * a).sum(dim=1)).sum()


def _vectors(
    graph: Graph, learnt: Tensor, clicks: csr_matrix, settings: LightGCNSettings
) -> Vectors:
    """The final vectors, and what an ad adds to a user who is new to the graph.

    A new user has no learnt vector; each layer gives him the sum of his ads' vectors of
    the layer before, divided by the root of their degrees. Lengths do not change the
    order of one user's ads, so the root of his own degree is left out.
    """
    users = clicks.shape[0]
    with torch.no_grad():
        vectors = learnt.detach()
        total, before = vectors.clone(), torch.zeros_like(vectors)
        for _ in range(settings.layers):
            before += vectors
            vectors = graph @ vectors
            total += vectors
    degree = np.bincount(clicks.indices, minlength=clicks.shape[1])
    root = torch.from_numpy(np.sqrt(np.maximum(degree, 1)).astype(np.float32))
    of_clicks = before[users:] / root[:, None]
    final = total / (settings.layers + 1)
    user, ad = final[:users], final[users:]
    if settings.temperature:  # what was learnt are angles
        user, ad = F.normalize(user, dim=1), F.normalize(ad, dim=1)
    return Vectors(user.numpy(), ad.numpy(), of_clicks.numpy())
