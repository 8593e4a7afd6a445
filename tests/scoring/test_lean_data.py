"""A private Ray runs a graph without the actors that stand beside one; a Ray that others use too keeps them."""

import json
import subprocess
import sys

import pytest

from detector.scoring import lean_data

RUN = """
import json, sys
import ray, ray.data
from detector.scoring import lean_data, pipeline

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
if sys.argv[1] == "shared":
    lean_data.is_private = lambda: False
pipeline._configure()

class Double:
    def __call__(self, batch):
        return {"id": 2 * batch["id"]}

pool = ray.data.ActorPoolStrategy(size=2)
rows = ray.data.range(40, override_num_blocks=4).map_batches(Double, compute=pool, num_cpus=0.5).take_all()
found = {}
for name, namespace in (
    ("datasets_stats_actor", "_dataset_stats_actor"),
    ("AutoscalingCoordinator", "AutoscalingCoordinator"),
    ("ActorLocationTracker", "ActorLocationTracker"),
):
    try:
        ray.get_actor(name, namespace=namespace)
        found[name] = True
    except ValueError:
        found[name] = False
print(json.dumps({"rows": sorted(row["id"] for row in rows), "found": found}))
"""


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["private", "shared"])
def test_the_actors_beside_a_graph_are_there_only_where_ray_is_shared(kind):
    done = subprocess.run([sys.executable, "-c", RUN, kind], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["rows"] == [2 * row for row in range(40)]
    assert len(result["found"]) == 3
    assert set(result["found"].values()) == {kind == "shared"}


def test_what_takes_other_parameters_than_ray_2_60_is_left_alone():
    class Ray:
        @staticmethod
        def call(one, another):
            return one + another

    before = Ray.call
    with pytest.raises(LookupError):
        lean_data._instead(Ray, "call", lambda one: one, "one")
    assert Ray.call is before


@pytest.mark.parametrize(("private", "expected"), [(True, "ours"), (False, 3)])
def test_it_is_decided_at_every_call(private, expected, monkeypatch):
    class Ray:
        @staticmethod
        def call(one, another):
            return one + another

    lean_data._instead(Ray, "call", lambda *_args, **_options: "ours", "one another")
    monkeypatch.setattr(lean_data, "is_private", lambda: private)
    assert Ray.call(1, another=2) == expected
