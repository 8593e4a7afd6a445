"""The exceptions that the command line turns into exit codes; see ``detector/cli.py``."""


class UsageError(ValueError):
    """The user can put it right: a flag, a path, a checkpoint. One clear line and exit code 2."""


class JobError(RuntimeError):
    """The job failed while it ran; committed work is kept. The message names the step. Exit code 1."""


class LockedError(RuntimeError):
    """Another run holds the output folder. Exit code 4."""


class StopRequested(BaseException):
    """SIGTERM arrived. A BaseException, so that no ``except Exception`` on the way swallows it. Exit code 143."""
