"""Tests that need a GPU are skipped, with the reason, where there is none."""

import pytest


def pytest_collection_modifyitems(items):
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
