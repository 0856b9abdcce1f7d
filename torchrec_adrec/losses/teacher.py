"""Distance of the towers' vectors from those of a teacher, as a share of a mean.

Shape letters: B vectors of this rank, M vectors of the teacher, D their width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_adrec.losses.mean import Share, share_of


@dataclass(frozen=True)
class Teacher:
    """Constant vectors of some ads or users.

    Attributes:
        ids: (M,) int64, rising.
        vectors: (M, D).
    """

    ids: Tensor
    vectors: Tensor

    def distance(self, students: Tensor, ids: Tensor, loss: str) -> Share:
        """Compare vectors with the teacher's of the same ids; others do not count.

        Args:
            students: (B, D).
            ids: (B,) int64, whose vectors they are.
            loss: mse: the mean square over the D numbers. cosine: 1 - cosine.
        """
        # Past the last id there is nothing to compare with, hence the clamp.
        places = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        is_known = self.ids[places] == ids
        vectors = self.vectors[places]
        if loss == "mse":
            distances = (students - vectors).square().mean(dim=1)
        else:
            distances = 1 - F.cosine_similarity(students, vectors, dim=1)
        return share_of(distances, is_known.to(distances.dtype))
