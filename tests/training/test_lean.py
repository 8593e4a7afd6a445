"""What is left out of a private Ray and of a training on it, and that it stays where it may be needed."""

from types import SimpleNamespace

import pytest
import ray
from ray._private import worker
from ray._private.node import Node
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy

from detector.private_ray import is_private, without_log_monitor
from detector.training import finetune
from detector.training.config import TrainConfig
from detector.training.lean import unreported
from tests.training import corpora


@pytest.mark.parametrize(
    ("node", "private"),
    [(None, False), (SimpleNamespace(head=True), True), (SimpleNamespace(head=False), False), (SimpleNamespace(), False)],
)
def test_only_a_ray_that_this_process_heads_is_private(monkeypatch, node, private):
    monkeypatch.setattr(worker, "_global_node", node)
    assert is_private() == private


def test_rays_own_start_of_the_log_monitor_is_put_back():
    start = Node.start_log_monitor
    with pytest.raises(KeyError), without_log_monitor():
        assert Node.start_log_monitor is not start
        raise KeyError
    assert Node.start_log_monitor is start


def test_only_a_policy_of_fixed_size_that_is_as_it_was_is_replaced(monkeypatch):
    fixed = FixedScalingPolicy(ScalingConfig(num_workers=3))
    assert unreported(fixed).make_decision_for_non_running_worker_group().num_workers == 3
    assert unreported(ElasticScalingPolicy(ScalingConfig(num_workers=(1, 3)))) is None
    assert unreported(None) is None
    monkeypatch.delattr("ray.train.v2._internal.execution.scaling_policy.ScalingPolicy._maybe_send_resource_request")
    assert unreported(fixed) is None


@pytest.mark.ray
def test_a_private_ray_has_no_log_monitor_and_a_training_no_coordinator(tmp_path, ray_here):
    assert ray_here.local
    assert is_private()
    assert "raylet" in worker._global_node.all_processes
    assert "log_monitor" not in worker._global_node.all_processes
    for label in ("AI", "Real"):
        corpora.pictures(tmp_path / "data" / "train" / label, 6, seed=1, label=label)
    config = TrainConfig(
        data=str(tmp_path / "data"), out=str(tmp_path / "out"), model="scratch:tiny", epochs=1, workers=1, batch_size=4
    )
    before = actors()
    assert finetune.finetune(config)["epochs"] == 1
    assert actors() == before, "one of Ray's own actors outlives the training"


def actors():
    return {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
