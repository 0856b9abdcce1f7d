"""Fields of one width, each weighted by a learned gate, and summed.

Shape letters: B rows, V fields that are vectors, N numbers, D width of a field.
"""

import torch
from torch import Tensor, nn


class GatedSum(nn.Module):
    """sum over fields of sigmoid(gate) * vector: as wide as one field, for any number.

    A number is a field too: it times a vector of its own, as in a factorisation machine
    (Rendle, ICDM 2010). A gate is one weight between 0 and 1 for all rows, which says
    how much of its field the tower reads.

    Attributes:
        names: of the fields, vectors first.
    """

    def __init__(self, vectors: list[str], numbers: list[str], dim: int) -> None:
        """Make gates and the vectors of numbers.

        Args:
            vectors: names of the V fields.
            numbers: names of the N numbers.
            dim: D.
        """
        super().__init__()
        self.names, self.dim = [*vectors, *numbers], dim
        self.gate = nn.Parameter(torch.zeros(len(self.names)))  # half open
        self.number = nn.Parameter(torch.randn(len(numbers), dim) * dim**-0.5)

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """(B, V * D) and (B, N) -> (B, D)."""
        gates = torch.sigmoid(self.gate)
        count = len(self.names) - len(self.number)
        fields = vectors.view(len(vectors), count, self.dim)
        of_vectors = torch.einsum("bvd,v->bd", fields, gates[:count])
        of_numbers: Tensor = (dense * gates[count:]) @ self.number
        return of_vectors + of_numbers

    def weights(self) -> dict[str, float]:
        """Return the gate of each field, from 0 to 1."""
        gates = torch.sigmoid(self.gate.detach().float()).tolist()
        return dict(zip(self.names, gates, strict=True))
