"""How many actors score and decode on a cluster, and how large each is. Knows nothing of Ray.

The standing actors never need more CPUs than the cluster has: with more, Ray Data waits for ever without a word.
"""

from dataclasses import dataclass

from detector.cluster import Cluster
from detector.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Resources:
    """How many actors of which size; together never more than the cluster has."""

    num_scorers: int
    scorer_cpus: float
    scorer_gpus: float
    num_decoders: int = 0
    decoder_cpus: float = 0.0
    decode_hosts: bool = False
    scorer_threads: int = 1

    @property
    def split(self) -> bool:
        """Whether decoding has actors of its own."""
        return self.num_decoders > 0


def plan_resources(cluster: Cluster, *, num_scorers: int | None, gpus_per_scorer: float | None, num_blocks: int) -> Resources:
    """Fit the actor pools to the cluster.

    Raises:
        UsageError: more scorers or GPUs were asked for than the cluster has.
    """
    per_gpu = (1.0 if cluster.gpus else 0.0) if gpus_per_scorer is None else gpus_per_scorer
    if per_gpu > 0:
        return _gpu_resources(cluster, num_scorers, per_gpu)
    most = max(1, int(cluster.cpus))
    if num_scorers is not None and num_scorers > most:
        raise UsageError(f"--scorers {num_scorers} is more than the cluster's {most} CPUs")
    return Resources(
        num_scorers=min(num_scorers or most, max(1, num_blocks)), scorer_cpus=min(1.0, cluster.cpus), scorer_gpus=0.0
    )


def _gpu_resources(cluster: Cluster, num_scorers: int | None, per_gpu: float) -> Resources:
    fits = int(cluster.gpus / per_gpu) if per_gpu <= 1 else int(cluster.gpus // per_gpu)
    if fits < 1 or (num_scorers or 0) > fits:
        wanted = f"{num_scorers or 1} × {per_gpu:g}"
        raise UsageError(f"--scorers and --gpus-per-scorer ask for {wanted} GPUs; the cluster has {cluster.gpus:g}")
    scorers = num_scorers or fits
    scorer_cpus = 1.0 if cluster.cpus >= 2 * scorers + 1 else 0.1
    left = max(cluster.cpus - scorers * scorer_cpus, 0.1)
    decoders = max(1, int(left))
    return Resources(
        num_scorers=scorers,
        scorer_cpus=scorer_cpus,
        scorer_gpus=per_gpu,
        num_decoders=min(decoders, int(cluster.decode)) if cluster.decode >= 1 else decoders,
        decoder_cpus=min(1.0, left),
        decode_hosts=cluster.decode >= 1,
        scorer_threads=2,  # while one block is committed, the next keeps the GPU busy
    )
