"""Where the workers pin up how far they are and the driver reads it: live progress across processes and machines.

Runs as one small Ray actor. Nothing on it is needed to resume; it ends with the job.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class News:
    """What has come in since the driver last looked.

    Attributes:
        done: pictures trained on so far, or None where nothing was said.
        lines: lines for the log.
        scalars: (step, name → value), for TensorBoard.
    """

    done: int | None = None
    lines: list[str] = field(default_factory=list)
    scalars: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class Board:
    """Collects news from the first worker until the driver drains it. Wrapped in ``ray.remote`` by the driver."""

    def __init__(self) -> None:
        self._news = News()
        self._attempts = 0
        self._fatal: str | None = None

    def begin(self, last_attempt: int) -> int:
        """Count one start of the worker group; ``last_attempt`` is the one its checkpoint tells of (0: none)."""
        self._attempts = max(self._attempts, last_attempt) + 1
        return self._attempts

    def pin(
        self, done: int | None = None, line: str | None = None, step: int = 0, scalars: Mapping[str, float] | None = None
    ) -> None:
        """Pin up pictures done, a line, or values at a step."""
        if done is not None:
            self._news.done = done
        if line is not None:
            self._news.lines.append(line)
        if scalars:
            self._news.scalars.append((step, dict(scalars)))

    def drain(self) -> News:
        """Take down what is new."""
        news, self._news = self._news, News()
        return news

    def give_up(self, reason: str) -> None:
        """Say that another attempt is of no use, and why."""
        self._fatal = self._fatal or reason

    def fatal(self) -> str | None:
        """Why no further attempt is of use, or None."""
        return self._fatal
