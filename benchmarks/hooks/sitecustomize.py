"""For benchmarks.capacity: a scoring process that has this folder on PYTHONPATH neither decodes nor has a model.

What is left is the engine: listing → blocks → committed parts → published files.
"""

import os
import sys


class NoModel:
    """Stands for ``detector.scoring.stages.BlockScorer``: gives every row a made-up score and commits the block."""

    def __init__(self, plan, **_options):
        self._plan = plan

    def __call__(self, files):
        import numpy as np
        import pyarrow as pa

        from detector.scoring import stages

        count = files.num_rows
        decoded = pa.table({
            "filename": files["filename"], "listed_bytes": files["bytes"], "listed_modified": files["modified"],
            "error": pa.nulls(count, pa.string()), "message": pa.nulls(count, pa.string()),
            "sha256": pa.repeat("0" * 64, count), "bytes": files["bytes"], "modified": files["modified"],
            "width": pa.repeat(pa.scalar(1024, pa.int32()), count), "height": pa.repeat(pa.scalar(768, pa.int32()), count),
            "format": pa.repeat("JPEG", count),
        })  # fmt: skip
        p_ai = np.linspace(0, 1, count, dtype=np.float32)
        return stages.commit_block(stages._scored_table(decoded, p_ai, {}, self._plan), plan=self._plan)

    def close(self):
        pass


if "detector.scoring.worker" in sys.orig_argv and os.environ.get("BENCHMARK_NO_MODEL"):
    import detector.scoring.stages

    detector.scoring.stages.BlockScorer = NoModel
