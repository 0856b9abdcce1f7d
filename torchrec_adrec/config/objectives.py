"""Settings of labels that depend on another label."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Literal

from pydantic import Field

from torchrec_adrec.config.base import Settings

LabelWeight = Annotated[float, Field(gt=0)]
# No rows of a class at all would leave nothing to learn from.
Share = Annotated[float, Field(gt=0, le=1)]


class Conditional(Settings):
    """A label that is 0 wherever another, binary label is 0.

    What is predicted is its probability, or its mean, over all impressions:
    p(given) p(label | given).
    """

    given: str
    """The name of the other label."""
    train_on: Literal["given", "all"] = "given"
    """The rows whose loss the label has. given: those where the other label is 1, so
    that p(label | given) is learned. all: all rows, on which the product of both
    predictions is learned (ESMM, Ma et al., SIGIR 2018, arXiv:1804.07931)."""


def parents_first(conditional: Mapping[str, Conditional]) -> tuple[str, ...]:
    """Order conditional labels so that each stands behind the one that it depends on.

    Raises:
        ValueError: labels that depend on themselves.
    """
    graph = {name: {rule.given} for name, rule in conditional.items()}
    try:
        order = tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise ValueError(
            f"conditional: {' given '.join(error.args[1])}: a label cannot be given"
            " itself; take one of these out"
        ) from None
    return tuple(name for name in order if name in conditional)
