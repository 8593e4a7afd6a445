"""Ray Train's TorchTrainer without the standing processes that one training has no use for.

An idle process of Ray takes 0.5 to 1 % of a core as long as it lives, and a second to start (measured). Which ones there are
is Ray's inside: where that changes, they stay, and training is as it is with the plain TorchTrainer.
"""

import contextlib
from typing import Any

from ray.train.torch import TorchTrainer

from detector.cluster import is_private

# Ray Data's shards, which nothing here reads; and a watch that frees the CPUs of a controller that died, which Ray does by
# itself, since they are reserved by the controller.
_UNUSED_CALLBACKS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


class LeanTrainer(TorchTrainer):
    """A TorchTrainer that starts only what it needs."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in _UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        with contextlib.suppress(ImportError):
            if is_private() and (policy := _fixed_size(options.get("scaling_policy"))) is not None:
                options["scaling_policy"] = policy
        return super()._initialize_and_run_controller(**options)


def _fixed_size(policy: Any) -> Any:
    """Ray's policy of a fixed number of workers, without telling an autoscaler what it needs: a private Ray has none.

    None where ``policy`` is not that policy.
    """
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

    class Untold(FixedScalingPolicy):
        """Asks for its workers, and for nothing else."""

        def after_controller_start(self, train_run_context: Any) -> None:
            """Start no coordinator."""

        def _maybe_send_resource_request(self) -> None:
            """There is nobody to send it to."""

    return Untold(policy.scaling_config) if type(policy) is FixedScalingPolicy else None
