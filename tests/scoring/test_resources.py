"""The standing actors never need more than the cluster has: with more, Ray Data waits for ever without a word."""

import pyarrow as pa
import pytest

from detector.cluster import Cluster
from detector.errors import UsageError
from detector.scoring import pipeline
from detector.scoring.resources import plan_resources
from detector.scoring.score import block_rows


def cluster(cpus, gpus=0.0):
    return Cluster(local=True, num_nodes=1, cpus=cpus, gpus=gpus, gpu_name="", address="local")


@pytest.mark.parametrize("cpus", [0.5, 1, 2, 3, 4, 16, 64, 1000])
@pytest.mark.parametrize("gpus", [0, 1, 2, 8, 100])
@pytest.mark.parametrize("per_gpu", [None, 0, 0.25, 1])
def test_actors_fit(cpus, gpus, per_gpu):
    if not gpus and per_gpu:
        with pytest.raises(UsageError, match="GPUs"):
            plan_resources(cluster(cpus, gpus), num_scorers=None, gpus_per_scorer=per_gpu, num_blocks=10_000)
        return
    found = plan_resources(cluster(cpus, gpus), num_scorers=None, gpus_per_scorer=per_gpu, num_blocks=10_000)
    assert found.num_scorers >= 1
    used = found.num_scorers * found.scorer_cpus + found.num_decoders * found.decoder_cpus
    assert used <= cpus + (0.1 * found.num_scorers if gpus else 0) + 1e-9
    assert found.num_scorers * found.scorer_gpus <= gpus
    assert found.split == bool(gpus and per_gpu != 0)


def test_one_scorer_for_one_block():
    assert plan_resources(cluster(64), num_scorers=None, gpus_per_scorer=None, num_blocks=1).num_scorers == 1


def test_more_scorers_than_cpus_are_refused():
    with pytest.raises(UsageError, match="--scorers 3"):
        plan_resources(cluster(2), num_scorers=3, gpus_per_scorer=None, num_blocks=10)


@pytest.mark.parametrize("num_rows", [1, 31, 100, 5_000, 50_000, 1_000_000, 50_000_000])
@pytest.mark.parametrize("batch_size", [1, 16, 100, 128, 4096, 5000])
def test_blocks_are_whole_batches_and_few(num_rows, batch_size):
    rows = block_rows(num_rows, batch_size)
    assert rows % batch_size == 0
    assert rows <= max(4096 + batch_size / 2, batch_size)
    if num_rows == 50_000 and batch_size <= 128:
        assert -(-num_rows // rows) <= 200


def test_decoding_stays_on_the_hosts_that_offer_it():
    marked = Cluster(local=False, num_nodes=3, cpus=48, gpus=4, gpu_name="", address="head:6379", decode=16)
    found = plan_resources(marked, num_scorers=None, gpus_per_scorer=None, num_blocks=1000)
    assert (found.decode_hosts, found.num_decoders) == (True, 16)
    assert not plan_resources(cluster(48, 4), num_scorers=None, gpus_per_scorer=None, num_blocks=1000).decode_hosts


def test_pieces_hold_all_rows_in_order_and_bound_the_bytes_of_several():
    sizes = [10, 70, 5, 5, None, 200, 1, 1, 1]
    block = pa.table({"bytes": pa.array(sizes, pa.int64()), "row": range(len(sizes))})
    pieces = list(pipeline._pieces(block, 3, 64))
    assert [row for piece in pieces for row in piece["row"].to_pylist()] == list(range(len(sizes)))
    assert all(piece.num_rows <= 3 for piece in pieces)
    assert all(piece.num_rows == 1 or sum(size or 0 for size in piece["bytes"].to_pylist()) <= 64 for piece in pieces)
    assert [piece.num_rows for piece in pipeline._pieces(block, 4, None)] == [4, 4, 1]
