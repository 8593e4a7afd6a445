"""Where the workers pin up how far they are and the driver reads it: live progress across processes and machines.

Kept in the key-value table of Ray's head, which every process can reach. An actor would be one more process, which takes a
second to start and nearly 1 % of a core as long as it lives (measured). Nothing on the board is needed to resume.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

_NAMESPACE = b"artwork-detector-training"
_ATTEMPTS, _FATAL, _NEWS = "attempts", "fatal", "news/"


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


@dataclass(frozen=True, kw_only=True)
class Board:
    """The board of one training, by the id of its run. Ray must be connected."""

    run: str

    def begin(self, last_attempt: int) -> int:
        """Count one start of the worker group; ``last_attempt`` is the one its checkpoint tells of (0: none)."""
        attempt = max(int(self._get(_ATTEMPTS) or 0), last_attempt) + 1
        self._put(_ATTEMPTS, str(attempt))
        return attempt

    def pin(
        self, done: int | None = None, line: str | None = None, step: int = 0, scalars: Mapping[str, float] | None = None
    ) -> None:
        """Pin up pictures done, a line, or values at a step; that it may fail must not end a training."""
        with contextlib.suppress(Exception):
            news = {"done": done, "line": line, "step": step, "scalars": dict(scalars or {})}
            self._put(f"{_NEWS}{time.time_ns():020}", json.dumps(news))

    def drain(self) -> News:
        """Take down what is new, the oldest first."""
        from ray.experimental import internal_kv

        news = News()
        for key in sorted(internal_kv._internal_kv_list(self._key(_NEWS), namespace=_NAMESPACE)):  # noqa: SLF001
            found = json.loads(internal_kv._internal_kv_get(key, namespace=_NAMESPACE) or b"{}")  # noqa: SLF001
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)  # noqa: SLF001
            if found.get("done") is not None:
                news.done = found["done"]
            if found.get("line") is not None:
                news.lines.append(found["line"])
            if found.get("scalars"):
                news.scalars.append((found["step"], found["scalars"]))
        return news

    def give_up(self, reason: str) -> None:
        """Say that another attempt is of no use, and why; what was said first stays."""
        if self.fatal() is None:
            self._put(_FATAL, reason)

    def fatal(self) -> str | None:
        """Why no further attempt is of use, or None."""
        found = self._get(_FATAL)
        return None if found is None else found.decode()

    def clear(self) -> None:
        """Take everything down, at the start and at the end of a training."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)  # noqa: SLF001

    def _key(self, name: str) -> bytes:
        return f"{self.run}/{name}".encode()

    def _get(self, name: str) -> bytes | None:
        from ray.experimental import internal_kv

        return internal_kv._internal_kv_get(self._key(name), namespace=_NAMESPACE)  # noqa: SLF001

    def _put(self, name: str, value: str) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(self._key(name), value.encode(), namespace=_NAMESPACE)  # noqa: SLF001
