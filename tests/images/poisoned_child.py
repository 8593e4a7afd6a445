"""The decoder child with flaws: a picture of 10 × 10 pixels ends it, one of 11 × 11 leaves 100 MB behind, as bugs do."""

import json
import os
import signal
import sys

from detector.images import decoder_child

real = decoder_child.decode_into
leaked = []


def fatal(data, limits, allocate, at_least):
    def count(height, width):
        if (height, width) == (10, 10):
            with open(os.environ["POISON_LOG"], "a", encoding="ascii") as log:
                log.write("tried\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        if (height, width) == (11, 11):
            leaked.append(bytearray(100 * 2**20))
        return allocate(height, width)

    return real(data, limits, count, at_least)


if __name__ == "__main__":
    decoder_child.decode_into = fatal
    decoder_child.main(json.loads(sys.argv[1]))
