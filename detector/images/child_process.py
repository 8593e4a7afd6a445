"""The handle on one decoder process: start it, send it a request, wait for a reply, kill it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from detector.images.decoder_protocol import READY, Reply, frame_end, pack_request, unpack_reply
from detector.images.fast import Sides
from detector.images.pixels import DecodeLimits

START_LIMIT_S = 60.0  # a cold start from a network file system, with every core busy
_REAP_LIMIT_S = 5.0
_MODULE = "detector.images.decoder_child"
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_PR_SEALS = ("F_ADD_SEALS", "F_SEAL_SHRINK")


def new_slot() -> int:
    """A descriptor of anonymous shared memory, sealed against shrinking where the system can (Linux)."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as unlinked:
            return os.dup(unlinked.fileno())
    descriptor = os.memfd_create("decoder-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if all(hasattr(fcntl, name) for name in _PR_SEALS):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


class ChildProcess:
    """One decoder process. ``ready`` once it said so; ``num_replies`` counts what it answered since."""

    def __init__(
        self, slots: list[int], limits: DecodeLimits, at_least: Sides | None = None, *, leave_jpegs: bool = False
    ) -> None:
        how = {"limits": dataclasses.asdict(limits), "at_least": at_least, "leave_jpegs": leave_jpegs}
        config = {**how, "slots": slots, "parent": os.getpid()}
        path = os.pathsep.join(filter(None, (_PACKAGE_ROOT, os.environ.get("PYTHONPATH"))))
        # One arena and one thread: each further one takes 64 MB of the address space that the limit counts.
        settings = {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # Nor what a scoring process keeps of its memory: here it would count against the pictures that follow.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        # -P: the working directory may be a folder of strangers' files; no module is to be found there.
        command = [sys.executable, "-P", "-W", "ignore", "-m", _MODULE, json.dumps(config)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=slots,
            env=inherited | settings, bufsize=0,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._replies = self._process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        self._buffer = b""
        self._started = time.monotonic()
        self.ready = False
        self.num_replies = 0

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def send(self, number: int, slot: int, size: int, path: bytes) -> None:
        """Write one request. A child that is gone is no error here: its replies have ended."""
        try:
            self._requests.write(pack_request(number, slot, size, path))
        except BrokenPipeError:
            return

    def reply(self, *, clock: float, limit_s: float) -> Reply | None:
        """The next reply, or None if the child ended or talks nonsense.

        Args:
            clock: when the child began on the request (``time.monotonic``), if it was ready then.
            limit_s: how long it may take from there; the start-up of the process is not counted.

        Raises:
            TimeoutError: no reply in time. The child still runs.
        """
        frame = self._frame(clock + limit_s if self.ready else self._started + START_LIMIT_S)
        if frame == READY and not self.ready:
            self.ready = True
            self._close_errors()
            frame = self._frame(time.monotonic() + limit_s)
        if frame is None:
            return None
        self.num_replies += 1
        return unpack_reply(frame)

    def _frame(self, deadline: float) -> bytes | None:
        data = self._buffer
        try:
            while not data or (end := frame_end(data)) is None:
                # Look at least once: the reply may lie there since long, while the caller was busy elsewhere.
                if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    self._buffer = data
                    raise TimeoutError
                more = os.read(self._replies, 65536)
                if not more:
                    return None
                data = data + more if data else more
        except ValueError:
            return None
        self._buffer = data[end:]
        return data[:end]

    def rang(self) -> bool:
        """Whether the child's own alarm ended it (the caller was away for longer than the limit)."""
        return self._wait() == -signal.SIGALRM

    def was_killed(self) -> bool:
        """Whether a signal ended the process."""
        return (self._wait() or 0) < 0

    def end(self) -> str:
        """How the process ended, for a person."""
        code = self._wait()
        if code is None:
            return f"no sign of life within {START_LIMIT_S:g} s"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"signal {-code}"

    def complaint(self) -> str:
        """The last line that a child which did not start wrote to stderr."""
        assert self._process.stderr is not None
        if self._process.stderr.closed or self._wait() is None:
            return ""
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else ""

    def kill(self) -> bool:
        """End the process now and close its pipes. False if it cannot be reaped (it hangs in the kernel)."""
        self._process.kill()
        reaped = self._wait() is not None
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._close_errors()
        return reaped

    def _wait(self) -> int | None:
        try:
            return self._process.wait(_REAP_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None

    def _close_errors(self) -> None:
        if self._process.stderr is not None:
            self._process.stderr.close()
