"""What every job's command line shares: flags from a dataclass, exit codes, SIGTERM, the summary line.

A job's own file under ``jobs/`` holds its flags and one function from flags to a summary; :func:`run_job` does the rest.
Nothing heavy is imported here, so that ``--help`` answers in under a second.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro

from detector.errors import JobError, LockedError, StopRequested, UsageError
from detector.private_ray import leave_if_abandoned
from detector.uris import shown

Flags = TypeVar("Flags")

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_TOO_MANY_ERRORS, EXIT_LOCKED, EXIT_STOPPED = 0, 1, 2, 3, 4, 143


def parse_flags(flags_type: type[Flags], job: str, argv: list[str] | None = None) -> Flags:
    """Turn a command line into a frozen dataclass; a wrong one is one clear line on stderr and exit code 2."""
    repeated = _repeated_flag(sys.argv[1:] if argv is None else argv)
    if repeated:
        _refuse(job, f"{repeated} is given twice: name all its values after one {repeated}")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(flags_type, prog=f"python -m jobs.{job}", args=argv)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        _refuse(job, f"{_one_line(errors.getvalue())}; see python -m jobs.{job} --help")


def _repeated_flag(argv: list[str]) -> str | None:
    """A flag that stands twice: the parser would silently keep the last one, and its pictures would be lost."""
    flags = [part.partition("=")[0].replace("_", "-") for part in argv if re.match(r"--[a-z]", part)]
    return next((flag for flag in flags if flags.count(flag) > 1), None)


def _refuse(job: str, message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    print(json.dumps({"job": job, "status": "wrong_use", "out": None, "error": message, "seconds": 0.0}), flush=True)
    raise SystemExit(EXIT_USAGE) from None


def _one_line(text: str) -> str:
    """Take the frame off the parser's message and keep what it says, without the help it repeats."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [re.sub(r"[\s│╭╮╰╯─]+", " ", line).strip() for line in text.splitlines()]
    headings = {"", "Parsing error", "Value error", "Unrecognized options", "Required options"}
    kept: list[str] = []
    for line in (line for line in lines if line not in headings):
        if line.startswith(
            ("For full helptext", "Perhaps you meant", "Are you sure", "Arguments similar", "======", "Argument helptext")
        ):
            break
        kept.append(line)
    message = " ".join(kept)
    missing = re.findall(r"(--[a-z][a-z0-9-]*) [\[{A-Z]", message) if message.startswith("Missing from") else []
    if missing:
        return f"missing {', '.join(missing)}"
    return message or "the command line could not be understood"


def _on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the tidy-up
    raise StopRequested


def run_job(job: str, flags_type: type[Flags], main: Callable[[Flags], dict[str, Any]], argv: list[str] | None = None) -> int:
    """Parse, run, report. ``main`` returns the summary; ``exit_code`` in it (removed before printing) sets the code.

    The last line of stdout is the summary as one JSON object, whatever the outcome.
    """
    flags = parse_flags(flags_type, job, argv)
    out = getattr(flags, "out", None)
    out = shown(out) if isinstance(out, str) else None
    signal.signal(signal.SIGTERM, _on_sigterm)
    start = time.monotonic()
    summary, code, message = _guarded(job, main, flags)
    if message:
        print(f"error: {message}", file=sys.stderr)
        summary["error"] = message
    line = {"job": job, "status": summary.pop("status"), "out": out, **summary}
    line["seconds"] = round(time.monotonic() - start, 3)
    sys.stderr.flush()
    print(json.dumps(line), flush=True)
    leave_if_abandoned(code)
    return code


def _guarded(job: str, main: Callable[[Flags], dict[str, Any]], flags: Flags) -> tuple[dict[str, Any], int, str]:
    """Run ``main`` and say how it ended: (summary with status, exit code, message or '')."""
    try:
        summary = main(flags)
        code = int(summary.pop("exit_code", EXIT_DONE))
        return {"status": "complete", **summary}, code, ""
    except UsageError as error:
        return {"status": "wrong_use"}, EXIT_USAGE, _visible(str(error))
    except LockedError as error:
        return {"status": "locked"}, EXIT_LOCKED, _visible(str(error))
    except StopRequested:
        return (
            {"status": "stopped"},
            EXIT_STOPPED,
            "stopped by SIGTERM; what is committed is kept, the same command continues",
        )
    except KeyboardInterrupt:
        return {"status": "stopped"}, 130, "interrupted; what is committed is kept, the same command continues"
    except (JobError, OSError, MemoryError) as error:
        return {"status": "failed"}, EXIT_FAILED, f"jobs.{job}: {_visible(str(error) or type(error).__name__)}"
    except Exception as error:
        if os.environ.get("DETECTOR_TRACEBACK"):
            raise
        text = _visible(f"{type(error).__name__}: {error}")[:2000]
        return {"status": "failed"}, EXIT_FAILED, f"jobs.{job}: {text} (set DETECTOR_TRACEBACK=1 for the traceback)"


def _visible(text: str) -> str:
    """One line, without control characters: file names in it are strangers' text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())
