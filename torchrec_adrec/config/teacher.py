"""Settings of the vectors that the towers learn to resemble."""

from typing import Annotated, Literal

from pydantic import Field

from torchrec_adrec.config.base import Settings


class TeacherConfig(Settings):
    """A term of the towers' loss: the distance of their vectors from a teacher's."""

    vectors: str
    """Folder of the teacher's vectors (`adrec lightgcn`), as wide as `output_dim`."""
    loss: Literal["mse", "cosine"] = "cosine"
    """The distance of two vectors of an ad or a user. mse: the mean square of the
    differences of their numbers; with `similarity: cosine`, whose vectors have length
    1, the teacher's are scaled to that length too, and it is cosine times 2 /
    `output_dim`. cosine: 1 - the cosine of their angle."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Factor of the mean distance over the ads of a step, drawn negatives among them,
    and of that over the users of its rows; both are added to the other losses."""
    sides: Annotated[tuple[Literal["user", "ad"], ...], Field(min_length=1)] = (
        "user",
        "ad",
    )
    """Whose vectors are compared."""
