"""A model, and a house whose collections are scored in this process."""

import pytest

from detector.scoring import local
from detector.scoring.stages import BlockScorer
from tests.checkpoints import save_swin
from tests.reprocessing.house import House


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_swin(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture
def one_process(monkeypatch):
    """Score with the same stages in this process: its torch is imported once, not anew for each of twenty runs."""

    def score_blocks(plan, blocks, *, num_workers, on_rows):
        scorer = BlockScorer(plan)
        for block in blocks:
            on_rows(scorer(block)["rows"][0].as_py())
        scorer.close()

    monkeypatch.setattr(local, "score_blocks", score_blocks)


@pytest.fixture
def house(tmp_path, model, one_process):
    return House(tmp_path, model)
