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

    def __init__(
        self,
        features: Sequence[VectorFeature],
        dim: int,
        names: Sequence[str] | None = None,
    ) -> None:
        """Make the projections.

        Args:
            features: of the side, in order.
            dim: D.
            names: of the V that are projected; None: all.
        """
        super().__init__()
        self.widths = [feature.width for feature in features]
        self.places = [
            place
            for place, feature in enumerate(features)
            if names is None or feature.name in names
        ]
        read = [features[place] for place in self.places]
        self.project = nn.ModuleList(nn.Linear(f.width, dim) for f in read)
        # The schema's, and saved nowhere else; the indicator stays as it is.
        scales = [[f.scale] * f.size + [1.0] for f in read]
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
            project(vectors[place] * self.get_buffer(f"scale{number}"))
            for number, (project, place) in enumerate(
                zip(self.project, self.places, strict=True)
            )
        ]
        return fields, numbers
