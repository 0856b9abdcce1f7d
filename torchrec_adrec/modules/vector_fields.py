"""Vectors of the data as fields of a model: one learned projection each.

Shape letters: B rows, F numbers of a side, V vectors of it, D width of a field.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_adrec.schema import VectorFeature


class VectorFields(nn.Module):
    """Projects the vectors, which stand in front of a side's other numbers.

    Without vectors it has no weights, and gives back what it gets.
    """

    def __init__(self, features: Sequence[VectorFeature], dim: int) -> None:
        """Make the projections.

        Args:
            features: of the side, in order.
            dim: D.
        """
        super().__init__()
        self.widths = [feature.width for feature in features]
        self.project = nn.ModuleList(
            nn.Linear(feature.width, dim) for feature in features
        )
        # The schema's, and saved nowhere else; the indicator stays as it is.
        scales = [[f.scale] * f.size + [1.0] for f in features]
        for number, scale in enumerate(scales):
            self.register_buffer(f"scale{number}", torch.tensor(scale), False)

    def forward(self, dense: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, F) -> V fields (B, D), and the numbers that are none of a vector."""
        if not self.widths:
            return [], dense
        *vectors, numbers = dense.split(
            [*self.widths, dense.shape[1] - sum(self.widths)], dim=1
        )
        fields = [
            project(vector * self.get_buffer(f"scale{number}"))
            for number, (project, vector) in enumerate(
                zip(self.project, vectors, strict=True)
            )
        ]
        return fields, numbers
