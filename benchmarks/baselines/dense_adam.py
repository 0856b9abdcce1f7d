"""nn.Embedding, one Adam over everything, a DataLoader over rows."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from torchrec_adrec.config.train import RetrievalConfig
from torchrec_adrec.schema import LOG_Q, Schema, Side

Row = dict[Any, Tensor]


class RowDataset(Dataset[Row]):
    """One row at a time, as the DataLoader asks for it."""

    def __init__(
        self, columns: dict[str, np.ndarray[Any, Any]], schema: Schema
    ) -> None:
        self.sides = {
            side: torch.from_numpy(
                np.stack([columns[f.name] for f in schema.sparse_of(side)], axis=1)
            ).long()
            for side in Side
        }
        self.click = torch.from_numpy(columns[schema.label_names[0]])
        self.log_q = torch.from_numpy(columns[LOG_Q])

    def __len__(self) -> int:
        return len(self.click)

    def __getitem__(self, row: int) -> Row:
        return {
            Side.USER: self.sides[Side.USER][row],
            Side.AD: self.sides[Side.AD][row],
            "click": self.click[row],
            "log_q": self.log_q[row],
        }


class DenseTower(nn.Module):
    """An nn.Embedding a feature, then an MLP."""

    def __init__(self, schema: Schema, side: Side, config: RetrievalConfig) -> None:
        super().__init__()
        features = schema.sparse_of(side)
        self.tables = nn.ModuleList(
            nn.Embedding(f.num_embeddings, config.embedding_dim) for f in features
        )
        sizes = [len(features) * config.embedding_dim, *config.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], config.output_dim))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, features) -> (B, D)."""
        looked_up = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return F.normalize(self.mlp(torch.cat(looked_up, dim=1)), dim=1)


class DenseTrainer:
    """The loop."""

    def __init__(
        self,
        columns: dict[str, np.ndarray[Any, Any]],
        schema: Schema,
        config: RetrievalConfig,
        batch_size: int,
    ) -> None:
        self.config = config
        self.user, self.ad = (DenseTower(schema, side, config) for side in Side)
        self.scale = nn.Parameter(torch.tensor(1.5).log())
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.parameters = [*self.user.parameters(), *self.ad.parameters()]
        self.parameters += [self.scale, self.bias]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.optimizer.dense_lr)
        self.loader = iter(
            DataLoader(
                RowDataset(columns, schema), batch_size, shuffle=True, drop_last=True
            )
        )

    def step(self) -> None:
        """One batch."""
        rows = next(self.loader)
        user, ad, click = (
            self.user(rows[Side.USER]),
            self.ad(rows[Side.AD]),
            rows["click"],
        )
        logits = self.scale.exp() * (user * ad).sum(dim=1) + self.bias
        scores = user @ ad.T / self.config.temperature - rows["log_q"]
        targets = torch.arange(len(scores))
        losses = F.cross_entropy(scores, targets, reduction="none")
        softmax = (losses * click).sum() / click.sum()
        pointwise = F.binary_cross_entropy_with_logits(logits, click)
        alpha = self.config.alpha
        self.optimizer.zero_grad()
        (alpha * pointwise + (1 - alpha) * softmax).backward()
        self.optimizer.step()
