"""Find the smallest cluster of a GPU that fits a job."""

from torchrec_adrec.distributed.planner import DENSE_SHARE, GIB
from torchrec_adrec.errors import PlanError
from torchrec_adrec.planning.cluster import Cluster, Gpu
from torchrec_adrec.planning.estimate import Estimate, estimate
from torchrec_adrec.planning.job import Job

MOST = 1024  # GPUs of the largest cluster that is tried
TRIES = 6  # clusters that are planned at most; a plan takes seconds


def estimate_or_smallest(job: Job, cluster: Cluster) -> Estimate:
    """Estimate a job on a cluster, or name the smallest cluster that it does fit.

    Raises:
        PlanError: it does not fit.
    """
    try:
        return estimate(job, cluster)
    except PlanError as error:
        fitting = smallest(job, cluster.gpu, error.needed)
        hint = (
            f"the next {TRIES} larger clusters do not fit either"
            if fitting is None
            else f"the smallest cluster that fits: {fitting}"
        )
        where = f"{cluster}, batch {job.batch:,}"
        raise PlanError(
            f"{where}: {error}; {hint}", error.needed, error.available
        ) from None


def smallest(job: Job, gpu: Gpu, needed: int) -> Cluster | None:
    """Find the first of 1, 2, 4 GPUs, then 1, 2, 3, ... full nodes that fits.

    Args:
        job: what is to be trained.
        gpu: the kind of all GPUs.
        needed: bytes over all ranks; clusters with less memory are not tried.
    """
    tries = TRIES
    for cluster in _sizes(gpu):
        memory = cluster.ranks * gpu.memory * GIB * (1 - DENSE_SHARE)
        if memory < needed or job.batch % cluster.ranks or not tries:
            continue
        try:
            estimate(job, cluster)
        except PlanError as error:
            # The refusal tells how much it lacked, which spares the plans in between.
            tries, needed = tries - 1, max(needed, error.needed)
        else:
            return cluster
    return None


def _sizes(gpu: Gpu) -> list[Cluster]:
    """List the clusters in the order in which they are tried."""
    part = [1 << i for i in range(10) if 1 << i < gpu.gpus_per_node]
    nodes = range(1, MOST // gpu.gpus_per_node + 1)
    return [
        *(Cluster(gpu, count, 1) for count in part),
        *(Cluster(gpu, gpu.gpus_per_node, count) for count in nodes),
    ]
