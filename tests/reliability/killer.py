"""Runs jobs.score and kills it at one moment of one write: ``killer.py POINT NAME COUNT -- score flags``.

POINT is ``before_temporary``, ``after_temporary``, ``before_rename`` or ``after_rename``; the process that reaches it for the
COUNT-th file whose path contains NAME ends by SIGKILL, and with it its whole process group.
"""

import os
import signal
import sys

import detector.storage as storage

POINT, NAME, COUNT = os.environ["KILL_POINT"], os.environ["KILL_NAME"], int(os.environ["KILL_COUNT"])
_now = {"seen": 0, "name": ""}
_replace, _write = os.replace, storage.LocalStore.write


def _maybe_kill(point):
    if point != POINT or NAME not in _now["name"]:
        return
    _now["seen"] += 1
    if _now["seen"] == COUNT:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def replace(source, target, **options):
    _maybe_kill("before_rename")
    _replace(source, target, **options)
    _maybe_kill("after_rename")


def write(self, name, writer):
    _now["name"] = name
    _maybe_kill("before_temporary")

    def watched(stream):
        result = writer(stream)
        _maybe_kill("after_temporary")
        return result

    _write(self, name, watched)


# Scoring processes import this file through hooks/sitecustomize.py.
os.replace = replace
storage.LocalStore.write = write

if __name__ == "__main__":
    from detector.cli import run_job
    from jobs.score import ScoreConfig, main

    sys.exit(run_job("score", ScoreConfig, main))
