"""Ray Data without the actors that stand beside every run and that one run on a private Ray has no use for.

Each is a process of its own that imports Ray Data: a CPU-second to start, and 70 to 125 MB (measured). Which ones there are
is Ray's inside, and what stands in for them must do all that Ray asks of them: so this is for the one release that was looked
through. With any other one they all stay, and so they do on a Ray that others use too.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from detector.private_ray import is_private

_RELEASE = "2.60."


@functools.cache
def make_lean() -> None:
    """From now on, as long as this process's Ray is its own, start no statistics, no autoscaling and no location actor."""
    import ray

    if not ray.__version__.startswith(_RELEASE):
        return
    for change in (_no_statistics, _no_autoscaling, _no_locations):
        try:
            change()
        except (ImportError, AttributeError, LookupError, TypeError, ValueError):
            continue


def _instead(owner: Any, name: str, ours: Callable[..., Any], parameters: str) -> None:
    """Where Ray is private, call ``ours`` for ``owner.name``; LookupError unless that takes these parameters."""
    theirs = getattr(owner, name)
    if " ".join(inspect.signature(theirs).parameters) != parameters:
        raise LookupError(name)

    def either(*args: Any, **options: Any) -> Any:
        return (ours if is_private() else theirs)(*args, **options)

    setattr(owner, name, staticmethod(either) if inspect.isclass(owner) else either)


def _no_statistics() -> None:
    """They are for Ray's dashboard, which a private Ray does not show."""
    from ray.data._internal.stats import _StatsManager

    for name, parameters in (
        ("update_execution_metrics", "dataset_tag op_metrics operator_tags state"),
        ("update_iteration_metrics", "stats dataset_tag split_index"),
        ("register_dataset_to_stats_actor", "dataset_tag operator_tags topology data_context"),
    ):
        _instead(_StatsManager, name, lambda *_args, **_options: None, parameters)


def _no_autoscaling() -> None:
    """No node can come to a private Ray: its resources are those that it was started with."""
    import ray
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.interfaces import ExecutionResources

    class OneNode(ClusterAutoscaler):
        """Has what the one node has, and asks for nothing more."""

        def __init__(self) -> None:
            self._total = ExecutionResources.from_resource_dict(ray.cluster_resources())

        def try_trigger_scaling(self) -> None:
            """There is nobody to ask."""

        def on_executor_shutdown(self) -> None:
            """Nothing was asked for."""

        def get_total_resources(self) -> ExecutionResources:
            """CPUs, GPUs and memory of the node."""
            return self._total

    parameters = "topology resource_manager data_context execution_id"
    _instead(streaming_executor, "create_cluster_autoscaler", lambda *_args, **_options: OneNode(), parameters)


def _no_locations() -> None:
    """Where an actor runs matters when it is started again on another node; here there is one."""
    from ray.data._internal.execution.operators import actor_pool_map_operator as pools

    _instead(pools, "get_actor_locations", lambda _ids: {}, "logical_actor_ids")
    _instead(pools, "get_or_create_actor_location_tracker", _NoTracker, "")


class _NoTracker:
    """Stands for the handle of Ray's actor that notes where the others run."""

    update_actor_location: "_NoMethod"

    def __init__(self) -> None:
        self.update_actor_location = _NoMethod()


class _NoMethod:
    def remote(self, *_args: Any) -> None:
        """Note nothing."""
