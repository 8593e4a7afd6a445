"""What becomes of a block whose process died: no row is lost, none is tried too often, and kills from outside blame nobody."""

import random
import signal
import time

import pyarrow as pa
import pytest

from detector.errors import JobError
from detector.scoring.isolation import MAX_ENDED, Block, after_death

CRASH, KILL = -signal.SIGSEGV, -signal.SIGKILL


def block(count, **facts):
    return Block(files=pa.table({"filename": [f"{n:04}" for n in range(count)]}), **facts)


def names(table):
    return table["filename"].to_pylist()


def test_only_the_rows_of_the_batch_in_flight_are_suspects():
    verdict = after_death(block(100), num_done=32, batch_size=16, exit_code=CRASH)
    assert [name for part in verdict.again for name in names(part.files)] == names(block(100).files)
    suspects = [part for part in verdict.again if part.suspect]
    assert [names(part.files) for part in suspects] == [[f"{n:04}"] for n in range(32, 48)]
    assert [part.files.num_rows for part in verdict.again if not part.suspect] == [32, 52]


@pytest.mark.parametrize("code", [-signal.SIGABRT, -signal.SIGBUS, 1])
def test_a_suspect_that_crashes_again_is_given_up(code):
    verdict = after_death(block(1, suspect=True), num_done=0, batch_size=16, exit_code=code)
    assert verdict.again == []
    assert verdict.given_up.num_rows == 1


@pytest.mark.parametrize("code", [KILL, -signal.SIGTERM, 0, None])
def test_a_kill_from_outside_blames_no_row(code):
    for given in (block(100), block(1, suspect=True)):
        verdict = after_death(given, num_done=0, batch_size=16, exit_code=code)
        assert [part.files.num_rows for part in verdict.again] == [given.files.num_rows]
        assert (verdict.again[0].suspect, verdict.given_up) == (given.suspect, None)


def test_deaths_while_a_block_is_written_end_the_job_and_blame_no_row():
    given = block(20)
    for _ in range(MAX_ENDED - 1):
        (given,) = after_death(given, num_done=20, batch_size=16, exit_code=CRASH).again
    with pytest.raises(JobError, match="wrote a block"):
        after_death(given, num_done=20, batch_size=16, exit_code=CRASH)


def test_any_poison_is_found_with_two_tries_and_everything_else_survives():
    """Without any process: every hand-out of a block that reaches a poisonous row in a batch counts as a try."""
    seed = int(time.time())
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(50):
        count, size = rng.randint(1, 120), rng.choice([1, 4, 16])
        poison = set(rng.sample([f"{n:04}" for n in range(count)], rng.randint(0, min(count, 6))))
        todo, scored, failed, tried = [block(count)], [], [], dict.fromkeys(poison, 0)
        while todo:
            now = todo.pop(0)
            rows = names(now.files)
            for start in range(0, len(rows), size):
                hit = poison.intersection(rows[start : start + size])
                if hit:
                    for name in hit:
                        tried[name] += 1
                    verdict = after_death(now, num_done=start, batch_size=size, exit_code=CRASH)
                    todo = verdict.again + todo
                    failed += names(verdict.given_up) if verdict.given_up else []
                    break
            else:
                scored += rows
        assert sorted(failed) == sorted(poison)
        assert sorted(scored + failed) == names(block(count).files)
        assert set(tried.values()) <= {2}
