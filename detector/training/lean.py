"""Ray Train's TorchTrainer without the standing processes that one training has no use for.

An idle process of Ray takes 0.5 to 1 % of a core as long as it lives, and a second to start (measured). Which ones there are
is Ray's inside, looked at before it is touched: what is not found as it was in Ray 2.60 stays.
"""

from typing import TYPE_CHECKING, Any

from ray.train.torch import TorchTrainer

from detector.private_ray import is_private

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

# Ray Data's shards, which nothing here reads; and a watch that frees the CPUs of a controller that died, which Ray does by
# itself, since they are reserved by the controller.
_UNUSED_CALLBACKS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
_REPORTS = ("after_controller_start", "_maybe_send_resource_request", "_send_resource_request", "_cancel_resource_request")


class LeanTrainer(TorchTrainer):
    """A TorchTrainer that starts only what it needs."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in _UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if is_private() and (policy := unreported(options.get("scaling_policy"))) is not None:
            options["scaling_policy"] = policy
        return super()._initialize_and_run_controller(**options)


def unreported(policy: Any) -> "FixedScalingPolicy | None":
    """The same fixed number of workers, without telling an autoscaler: nothing can be added to a private Ray.

    None where ``policy`` is another one, or not as it was in Ray 2.60.
    """
    try:
        from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
    except ImportError:
        return None
    if type(policy) is not FixedScalingPolicy or not all(hasattr(policy, name) for name in _REPORTS):
        return None

    class Unreported(FixedScalingPolicy):
        """Asks for its workers, and for nothing else."""

        def after_controller_start(self, train_run_context: Any) -> None:
            """Start no coordinator."""

        def _maybe_send_resource_request(self) -> None:
            """There is nobody to send it to."""

        def _send_resource_request(self) -> None:
            """There is nobody to send it to."""

        def _cancel_resource_request(self) -> None:
            """Nothing was sent."""

    return Unreported(policy.scaling_config)
