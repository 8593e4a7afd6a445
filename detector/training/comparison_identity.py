"""What makes two runs parts of one comparison."""

import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from detector import runs
from detector.errors import UsageError
from detector.training.comparison_config import CompareConfig
from detector.training.dataset import MANIFEST


def comparison_identity(config: CompareConfig, train: pa.Table, test: pa.Table) -> dict[str, Any]:
    """What two runs must have in common to stand in one table: the recipe, and the pictures of both splits."""
    digests = _content(config.data)
    pictures = {
        split: runs.digest([
            [name, label, source, digests.get(name) or os.path.getsize(path)]
            for name, path, label, source in zip(*(samples[column].to_pylist() for column in samples.column_names), strict=True)
        ])
        for split, samples in ((config.train_split, train), (config.test_split, test))
    }  # fmt: skip
    identity = {"recipe": config.shared_recipe(), "test_split": config.test_split, "pictures": pictures}
    return json.loads(json.dumps(identity))


def _content(data: str) -> dict[str, str]:
    """SHA-256 by filename from the manifest; a bare tree's pictures are told apart by their sizes."""
    try:
        table = pq.read_table(os.path.join(data, MANIFEST), columns=["filename", "sha256"])
    except (OSError, pa.ArrowException):
        return {}
    return dict(zip(table["filename"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def refuse_other(out: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a folder that was begun with another recipe or with other pictures.

    Raises:
        UsageError: they differ; the message names the flags.
    """
    old, new = before.get("recipe", {}), now["recipe"]
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    values = [f"--{name.replace('_', '-')} (was {old.get(name)}, is {new.get(name)})" for name in different]
    if before.get("test_split") != now["test_split"]:
        values.append(f"--test-split (was {before.get('test_split')}, is {now['test_split']})")
    if values:
        raise UsageError(f"{out} holds a comparison with other flags: {', '.join(values)}; give this one another --out")
    if dict(before) != dict(now):
        raise UsageError(f"{out} holds a comparison on other pictures; give this one another --out")
