"""What workers pin up arrives once, in order; other trainings' boards are not touched."""

import pytest
import ray

from detector.training.board import Board

pytestmark = pytest.mark.ray


def test_what_workers_pin_up_arrives_once_and_in_order(ray_here):
    board, other = Board(run="one"), Board(run="one-more")

    @ray.remote(num_cpus=1)
    def work(board):
        attempt = board.begin(0)
        for step in range(12):
            board.pin(done=step, line=f"step {step}", step=step, scalars={"loss": step / 2})
        board.pin(done=99)
        return attempt

    other.pin(line="not ours")
    assert ray.get(work.remote(board)) == 1
    news = board.drain()
    assert news.done == 99
    assert news.lines == [f"step {step}" for step in range(12)]
    assert news.scalars == [(step, {"loss": step / 2}) for step in range(12)]
    assert board.drain() == type(news)()
    assert [board.begin(0), board.begin(7), board.begin(0)] == [2, 8, 9]
    assert board.fatal() is None
    board.give_up("no memory")
    board.give_up("later reason")
    assert board.fatal() == "no memory"
    board.clear()
    assert board.fatal() is None
    assert board.begin(0) == 1
    assert other.drain().lines == ["not ours"]
