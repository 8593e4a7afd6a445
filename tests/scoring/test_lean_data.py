"""A private Ray runs a graph without the actors that stand beside one; a Ray that others use too keeps them."""

import json
import subprocess
import sys

import pytest

from detector.scoring import lean_data

RUN = """
import json, os, signal, sys
import ray, ray.data
from detector.scoring import lean_data, pipeline

kind, *marks = sys.argv[1:]
if kind == "shared":
    lean_data.is_private = lambda: False
ours = ray.__version__
if kind == "other-release":
    ray.__version__ = "2.61.0"
pipeline._configure()
ray.__version__ = ours

class DoubleAndDie:
    def __init__(self, mark):
        self.mark = mark

    def __call__(self, batch):
        if not os.path.exists(self.mark):
            open(self.mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"id": 2 * batch["id"]}

def rows(mark):
    pool = ray.data.ActorPoolStrategy(size=2)
    numbers = ray.data.range(40, override_num_blocks=4)
    doubled = numbers.map_batches(DoubleAndDie, fn_constructor_args=(mark,), compute=pool, num_cpus=0.5, max_restarts=-1)
    return sorted(row["id"] for row in doubled.take_all())

def is_there(name, namespace):
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True

results = []
for mark in marks:  # a Ray of its own each time
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
    found = rows(mark)
    results.append([found, os.path.exists(mark), [
        is_there("datasets_stats_actor", "_dataset_stats_actor"),
        is_there("AutoscalingCoordinator", "AutoscalingCoordinator"),
        is_there("ActorLocationTracker", "ActorLocationTracker"),
    ]])
    ray.shutdown()
print(json.dumps(results))
"""


@pytest.mark.ray
@pytest.mark.parametrize(("kind", "runs"), [("private", 2), ("shared", 1), ("other-release", 1)])
def test_the_actors_beside_a_graph_are_missing_only_on_a_private_ray_and_nobody_misses_them(kind, runs, tmp_path):
    marks = [str(tmp_path / str(run)) for run in range(runs)]
    done = subprocess.run([sys.executable, "-c", RUN, kind, *marks], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    doubled, an_actor_was_killed = [2 * row for row in range(40)], True
    there = [kind != "private"] * 3
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [[doubled, an_actor_was_killed, there]] * runs


def test_what_takes_other_parameters_than_ray_2_60_is_left_alone():
    class Ray:
        @staticmethod
        def call(one, another):
            return one + another

    before = Ray.call
    with pytest.raises(LookupError):
        lean_data._instead(Ray, "call", lambda one: one, "one")
    assert Ray.call is before


def test_it_is_decided_at_every_call(monkeypatch):
    class Ray:
        @staticmethod
        def call(one, another):
            return one + another

    lean_data._instead(Ray, "call", lambda *_args, **_options: "ours", "one another")
    for private, expected in ((True, "ours"), (False, 3), (True, "ours")):
        monkeypatch.setattr(lean_data, "is_private", lambda private=private: private)
        assert Ray.call(1, another=2) == expected
