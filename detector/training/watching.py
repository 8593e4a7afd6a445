"""The driver's view of a running training: progress bar, log lines and TensorBoard, read from the board once a second."""

import contextlib
import os
import shutil
import tempfile
import threading
from types import TracebackType
from typing import Any, Self

from detector.progress import Progress, log
from detector.storage import Store
from detector.training.board import Board, News

TENSORBOARD_FOLDER = "tensorboard"
_LOOK_EVERY_S = 1.0


class Watcher:
    """Drains the board in a thread of its own, from entering the context to leaving it."""

    def __init__(self, board: Board, *, total: int, store: Store) -> None:
        self._board, self._store = board, store
        self._total, self._before = total, 0
        self._progress: Progress | None = None  # made at the first news, so that the rate leaves the start-up out
        self._folder = (
            os.path.join(store.root, TENSORBOARD_FOLDER) if store.is_local else tempfile.mkdtemp(prefix="tensorboard-")
        )
        self._writer: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)
        if self._writer is not None:
            self._writer.close()
            self._upload()

    def _watch(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_LOOK_EVERY_S)
            news = News()
            with contextlib.suppress(Exception):  # the cluster is going down: nothing more to show
                news = self._board.drain()
            self._show(news)

    def _show(self, news: News) -> None:
        if news.done is not None:
            self._advance(news.done)
        for line in news.lines:
            log(line)
        for step, values in news.scalars:
            self._write(step, values)

    def _advance(self, done: int) -> None:
        """Move the bar; an attempt that starts further back gets a bar of its own, with its own rate."""
        if self._progress is None or done < self._before + self._progress.done:
            self._progress, self._before = Progress(total=self._total - done, label="train"), done
        self._progress.advance(done - self._before - self._progress.done)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._folder)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _upload(self) -> None:
        """Copy the event files to an object store, and forget the local ones."""
        if self._store.is_local:
            return
        for name in os.listdir(self._folder):
            with open(os.path.join(self._folder, name), "rb") as file:
                self._store.write(f"{TENSORBOARD_FOLDER}/{name}", lambda out, file=file: shutil.copyfileobj(file, out))  # type: ignore[misc]
        shutil.rmtree(self._folder, ignore_errors=True)
