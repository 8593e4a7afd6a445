"""Shared by the kill and load tests."""

from tests.scoring.conftest import folder, model, score, undisturbed

__all__ = ["folder", "model", "score", "undisturbed"]
