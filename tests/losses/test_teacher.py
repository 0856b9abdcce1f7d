"""The distance from a teacher's vectors: its formulas, and whom it leaves out.

That it is one mean over all ranks is tested with the other losses
(`test_losses_over_ranks.py`).
"""

import pytest
import torch

from torchrec_adrec.losses.teacher import Teacher

STUDENTS = torch.tensor([[1.0, 0], [3, 4], [0, 2], [5, 5]])
TEACHER = Teacher(torch.tensor([3, 7, 9]), torch.tensor([[0.0, 1], [6, 8], [1, 0]]))


@pytest.mark.parametrize(
    ("loss", "expected"),
    # (3, 4) against (6, 8), and (0, 2) against (0, 1): the mean of two squares each.
    [("mse", (9 + 16) / 2 + (0 + 1) / 2), ("cosine", 0)],
)
def test_vectors_of_the_same_ids_are_compared(loss: str, expected: float) -> None:
    students = STUDENTS.clone().requires_grad_()
    # 8 and 12 have no vector; 12 is behind the last id that has one.
    share = TEACHER.distance(students, torch.tensor([8, 7, 3, 12]), loss)
    assert share.weight == 2
    assert share.total.item() == pytest.approx(expected, abs=1e-6)
    share.total.backward()
    assert students.grad is not None
    assert (students.grad[[0, 3]] == 0).all()
    other = TEACHER.distance(STUDENTS[:1], torch.tensor([3]), loss)
    assert other.total.item() == pytest.approx(1)  # at a right angle, of length 1


def test_where_nobody_has_a_vector_nothing_counts() -> None:
    share = TEACHER.distance(STUDENTS, torch.tensor([-1, 0, 4, 99]), "mse")
    assert share.total == 0 and share.weight == 0
