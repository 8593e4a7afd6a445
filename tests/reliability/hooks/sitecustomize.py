"""Python imports this first in every process that has this folder on PYTHONPATH: faults put into scoring processes only.

``KILL_POINT``: see killer.py. ``POISON``: a file in which every try of a poisonous picture is noted before its process ends by
the signal ``POISON_SIGNAL``; poisonous is what has "poison" in its name.
"""

import os
import sys


def _poison():
    import detector.scoring.stages as stages

    honest = stages.score_block

    def score_block(predictor, decoded, **options):
        found = [name for name in decoded["filename"].to_pylist() if "poison" in name]
        if found:
            with open(os.environ["POISON"], "a", encoding="utf-8") as log:
                log.writelines(f"{name}\n" for name in found)
            os.kill(os.getpid(), int(os.environ["POISON_SIGNAL"]))
        return honest(predictor, decoded, **options)

    stages.score_block = score_block


if "detector.scoring.worker" in sys.orig_argv:
    if "KILL_POINT" in os.environ:
        import tests.reliability.killer  # noqa: F401
    if "POISON" in os.environ:
        _poison()
