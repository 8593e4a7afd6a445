"""A cluster of three nodes in one process, a scoring run on it, and the loss of one: ``nodes.py IMAGES MODEL OUT``.

The last line of stdout is one JSON object: the run's summary, and what was committed when the node was lost.
"""

import json
import os
import sys
import threading
import time

import psutil
from ray.cluster_utils import Cluster

from detector.scoring.config import ScoreConfig
from detector.scoring.score import score


def num_parts(out):
    return sum(
        name.endswith(".parquet") and name[0] != "." for _, _, names in os.walk(os.path.join(out, "parts")) for name in names
    )


def scorers_of(node):
    """The scoring processes below a node's raylet."""
    found = []
    for kind, processes in node.all_processes.items():
        for each in processes if kind == "raylet" else []:
            found += [
                p for p in psutil.Process(each.process.pid).children(recursive=True) if "MapWorker" in " ".join(p.cmdline())
            ]
    return found


def lose_one(cluster, out, facts):
    """Once a worker node scores and some blocks are committed, end everything of it by SIGKILL."""
    while facts["scoring"]:
        time.sleep(0.05)
        if num_parts(out) < 2:
            continue
        for node in list(cluster.worker_nodes):
            try:
                scorers = scorers_of(node)
                decoders = [child for scorer in scorers for child in scorer.children(recursive=True)]
                if not decoders:  # it has no block yet
                    continue
                for process in [*scorers, *decoders]:
                    process.kill()
            except psutil.Error:
                continue
            facts["parts_before"] = num_parts(out)
            cluster.remove_node(node, allow_graceful=False)
            facts["nodes_left"] = 1 + len(cluster.worker_nodes)
            return


def main(images, model, out):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        facts = {"scoring": True}
        thread = threading.Thread(target=lose_one, args=(cluster, out, facts))
        thread.start()
        begun = time.monotonic()
        try:
            summary = score(ScoreConfig(images=(images,), model=model, out=out, ray_address=cluster.address))
        finally:
            facts["scoring"] = False
            thread.join()
        print(json.dumps({**summary, **facts, "score_seconds": round(time.monotonic() - begun, 1)}))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
