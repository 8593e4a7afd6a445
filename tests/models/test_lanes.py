"""Several batches in flight: every row gets its own score or its own error, whatever waits for whom. No GPU is needed for it."""

import threading
from collections import deque

import numpy as np
import pytest
import torch

from detector.models import lanes
from detector.models.checkpoint import inspect_checkpoint, load_model
from detector.models.devices import resolve_settings
from detector.models.predictor import GpuPredictor, ModelError, Predictor, load_predictor
from tests.checkpoints import save_swin

BATCH, SIDE = 4, 32


class LazyEvent:
    def __init__(self, streams):
        self.streams, self.done, self.error = streams, False, None

    def synchronize(self):
        self.streams.run_until(self)
        if self.error is not None:
            raise self.error


class LazyStreams:
    """Does nothing before somebody waits for it: what is read or overwritten too early comes out wrong."""

    def __init__(self):
        self.queues = {"copy": deque(), "compute": deque()}
        self.most = self.drains = 0
        self.lock = threading.RLock()

    def queue(self, name, work, *, after=None):
        event = LazyEvent(self)
        with self.lock:
            self.queues[name].append((event, work, after))
            self.most = max(self.most, len(self.queues["compute"]))
        return event

    def run_until(self, event):
        with self.lock:
            queue = next((queue for queue in self.queues.values() if any(entry[0] is event for entry in queue)), None)
            while not event.done:
                current, work, after = queue.popleft()
                try:
                    if after is not None:
                        after.synchronize()
                    work()
                except RuntimeError as error:
                    current.error = error
                current.done = True

    def drain(self):
        self.drains += 1
        for queue in self.queues.values():
            while queue:
                self.run_until(queue[-1][0])


class EagerStreams(LazyStreams):
    """Raises while the work is queued, as CUDA's allocator does."""

    def queue(self, name, work, *, after=None):
        del name, after
        work()
        event = LazyEvent(self)
        event.done = True
        return event


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return inspect_checkpoint(save_swin(tmp_path_factory.mktemp("lanes") / "model"))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(3).integers(0, 256, (31, 3, SIDE, SIDE), dtype=np.uint8)


def settings():
    return resolve_settings(kind="cpu", batch_size=BATCH, precision="fp32")


def predictor(checkpoint, streams):
    return GpuPredictor(
        load_model(checkpoint),
        transform=checkpoint.transform,
        label_map=checkpoint.label_map,
        settings=settings(),
        streams=streams,
    )


def collect(found, count):
    p_ai, failed = np.full(count, np.nan, dtype=np.float32), {}
    for rows, outcome in found:
        if isinstance(outcome, ModelError):
            failed |= dict.fromkeys(rows.tolist(), str(outcome))
        else:
            p_ai[rows] = outcome
    return p_ai, failed


@pytest.mark.parametrize("count", [0, 1, 4, 5, 12, 13, 31])
def test_rows_get_their_own_scores(checkpoint, pixels, count):
    """Any rows in any order, also the padded last batch; bit for bit what one batch at a time gives."""
    expected = load_predictor(checkpoint, settings()).predict_all(pixels)
    rows = np.random.default_rng(count).permutation(len(pixels))[:count]
    streams = LazyStreams()
    p_ai, failed = collect(predictor(checkpoint, streams).stream(pixels, rows), len(pixels))
    assert failed == {}
    assert (p_ai[rows] == expected[rows]).all()
    assert np.isnan(np.delete(p_ai, rows)).all()
    assert streams.most == min(lanes.NUM_LANES, -(-count // BATCH)), "batches must be in flight together"


def test_threads_share_a_predictor(checkpoint, pixels):
    """One actor scores two blocks at once: neither sees the other's rows."""
    expected = load_predictor(checkpoint, settings()).predict_all(pixels)
    shared, found = predictor(checkpoint, LazyStreams()), {}

    def score(name, rows):
        found[name] = [collect(shared.stream(pixels, rows), len(pixels))[0][rows] == expected[rows] for _ in range(5)]

    jobs = {"up": np.arange(31), "down": np.arange(31)[::-1], "odd": np.arange(1, 31, 2)}
    threads = [threading.Thread(target=score, args=job) for job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found.keys() == jobs.keys()
    assert all(equal.all() for rounds in found.values() for equal in rounds)


def break_batches(target, calls_that_fail, error):
    forward, calls = target._model.forward, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) in calls_that_fail:
            raise error
        return forward(*args, **kwargs)

    target._model.forward = failing
    return calls


@pytest.mark.parametrize("streams", [LazyStreams, EagerStreams])
def test_a_batch_that_fails_fails_alone(checkpoint, pixels, streams):
    target = predictor(checkpoint, streams())
    break_batches(target, {3}, RuntimeError("no such kernel\nand more"))
    p_ai, failed = collect(target.stream(pixels, np.arange(31)), 31)
    assert set(failed) == {8, 9, 10, 11}
    assert set(failed.values()) == {"the model raised: no such kernel"}
    assert (np.isnan(p_ai) == np.isin(np.arange(31), list(failed))).all()


def test_no_memory_beside_the_others_is_tried_again_alone(checkpoint, pixels):
    streams = EagerStreams()
    target = predictor(checkpoint, streams)
    calls = break_batches(target, {3}, torch.OutOfMemoryError("CUDA out of memory"))
    p_ai, failed = collect(target.stream(pixels, np.arange(31)), 31)
    assert (failed, streams.drains, len(calls)) == ({}, 1, 9)
    assert (p_ai == load_predictor(checkpoint, settings()).predict_all(pixels)).all()


def test_no_memory_even_alone_is_model_failed_and_names_the_flag(checkpoint, pixels):
    target = predictor(checkpoint, EagerStreams())
    break_batches(target, {3, 4}, torch.OutOfMemoryError("CUDA out of memory"))
    _, failed = collect(target.stream(pixels, np.arange(31)), 31)
    assert set(failed) == {8, 9, 10, 11}
    assert "try --batch-size 2" in failed[8]
    with pytest.raises(ModelError, match="--batch-size 4"):
        break_batches(target, {1, 2}, torch.OutOfMemoryError("CUDA out of memory"))
        target.predict(2)


def test_one_batch_through_the_buffer(checkpoint, pixels):
    target = predictor(checkpoint, LazyStreams())
    target.batch[:3] = pixels[:3]
    assert (target.predict(3) == load_predictor(checkpoint, settings()).predict_all(pixels[:3])).all()


def test_a_result_outlives_its_lane(checkpoint, pixels):
    """Fetched long after other batches have gone through the same buffers."""
    target = predictor(checkpoint, LazyStreams())
    first = target._lanes.submit(pixels, np.arange(4))
    expected = load_predictor(checkpoint, settings()).predict_all(pixels)
    for start in range(4, 28, 4):
        target._lanes.submit(pixels, np.arange(start, start + 4))
    assert (first.result() == expected[:4]).all()
    assert (first.result() == expected[:4]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_gpu_gives_the_same_bits_with_and_without_lanes(checkpoint, pixels, precision, channels_last):
    from dataclasses import replace

    how = replace(resolve_settings(kind="cuda", batch_size=BATCH, precision=precision), channels_last=channels_last)
    one, many = Predictor.load(checkpoint, how), load_predictor(checkpoint, how)
    assert isinstance(many, GpuPredictor)
    found = np.concatenate([many.predict_all(pixels) for _ in range(20)])
    assert (found == np.tile(one.predict_all(pixels), 20)).all()
    alone = np.concatenate([many.predict_all(pixels[i : i + 1]) for i in range(len(pixels))])
    assert (alone == found[: len(pixels)]).all()
    expected = load_predictor(checkpoint, settings()).predict_all(pixels)
    assert np.abs(found[: len(pixels)] - expected).mean() <= (1e-4 if precision == "fp32" else 0.02)


@pytest.mark.gpu
def test_a_full_gpu_is_model_failed(checkpoint, pixels):
    target = load_predictor(checkpoint, resolve_settings(kind="cuda", batch_size=BATCH, precision="bf16"))
    break_batches(target, {1, 2}, torch.OutOfMemoryError("CUDA out of memory"))
    p_ai, failed = collect(target.stream(pixels, np.arange(31)), 31)
    assert set(failed) == {0, 1, 2, 3}
    assert np.isfinite(p_ai[4:]).all()
