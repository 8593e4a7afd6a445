"""How far a job is: a live bar on a terminal, a plain line every few seconds elsewhere. Always on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_EVERY_S = 5.0


def log(message: str) -> None:
    """Write one plain line to stderr, with control characters made visible (file names are strangers' text)."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    tqdm.write(safe, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """Counts ``total`` units of work and shows the rate and the time left."""

    def __init__(self, *, total: int, label: str, unit: str = "images") -> None:
        self.total, self.label, self.unit, self.done = total, label, unit, 0
        self._start = self._last = time.monotonic()
        self._shown = 0
        self._bar = tqdm(total=total, desc=label, unit=f" {unit}", file=sys.stderr) if sys.stderr.isatty() else None

    def advance(self, count: int) -> None:
        """Count ``count`` more units as done."""
        self.done += count
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif now - self._last >= LINE_EVERY_S:
            self._last = now
            self._line(now)

    def _line(self, now: float) -> None:
        self._shown = self.done
        rate = self.done / max(now - self._start, 1e-9)
        left = f", about {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        log(f"{self.label}: {self.done:,} of {self.total:,} {self.unit}, {rate:.1f} {self.unit}/s{left}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done != self._shown:
            self._line(time.monotonic())
