"""The text that `adrec plan` prints: one cluster in full, or several compared."""

from collections.abc import Sequence

from torchrec_adrec.errors import PlanError
from torchrec_adrec.planning.cluster import Cluster, parse, with_prices
from torchrec_adrec.planning.estimate import Estimate
from torchrec_adrec.planning.fit import estimate_or_smallest
from torchrec_adrec.planning.job import Job
from torchrec_adrec.planning.report import compare, report


def lines_of(
    job: Job,
    gpus: str,
    nodes: int | None,
    others: Sequence[str],
    prices: Sequence[str] = (),
) -> list[str]:
    """Report on the first cluster in full, then on what changes on the others.

    Args:
        job: what is to be trained.
        gpus: the first cluster, as `8xH100-80GB`.
        nodes: of it; see `cluster.parse`.
        others: further clusters, written alike.
        prices: GPU=DOLLARS an hour and GPU, in place of `gpus.yaml`'s.

    Raises:
        PlanError: the first cluster does not fit.
        ConfigError: no such GPU, or a batch that its number does not divide.
    """
    # Only the first cluster must fit: beside it a refusal is an answer of its own.
    priced = with_prices(prices)
    first = estimate_or_smallest(job, parse(gpus, nodes, priced))
    lines = report(first, job.sharding)
    if others:
        estimates = {
            text: _or_refusal(job, parse(text, None, priced)) for text in others
        }
        lines += ["", *compare(_name(gpus, nodes), first, estimates)]
    return lines


def _name(gpus: str, nodes: int | None) -> str:
    return f"{nodes} x {gpus}" if nodes and nodes > 1 else gpus


def _or_refusal(job: Job, cluster: Cluster) -> Estimate | PlanError:
    try:
        return estimate_or_smallest(job, cluster)
    except PlanError as error:
        return error
