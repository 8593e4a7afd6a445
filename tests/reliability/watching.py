"""What a run does while it runs, seen from outside: its scoring processes, and what happens to its files."""

import contextlib
import threading
import time

import psutil

from tests.scoring.test_local import start


def is_scorer(process):
    return process is not None and "detector.scoring.worker" in " ".join(process.cmdline())


class Watched:
    """A finished run: how it ended, and the process ids of everything that scored for it."""

    def __init__(self, *flags, engine):
        begun = time.monotonic()
        process = start(*flags, "--engine", engine)
        self.scorers, ended = set(), threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process.pid, ended))
        watcher.start()
        self.stdout, self.stderr = process.communicate(timeout=280)
        ended.set()
        watcher.join()
        self.seconds, self.returncode = time.monotonic() - begun, process.returncode

    def _watch(self, pid, ended):
        while not ended.wait(0.1):
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        # Between fork and exec a scoring process's child looks like itself.
                        if is_scorer(child) and not is_scorer(child.parent()):
                            self.scorers.add(child.pid)
