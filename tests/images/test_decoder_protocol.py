"""Frames between the decoder and its child: what goes in comes out, and nonsense is never believed."""

import json
import struct

import numpy as np
import pytest

from detector.images import decoder_protocol as protocol
from detector.images.decoder_protocol import Reply, Request

GOOD = Reply(7, None, None, "ab" * 32, 123, -5, 640, 480, "JPEG", (240, 320), 6)


@pytest.mark.parametrize("reply", [
    GOOD,
    GOOD._replace(modified_ns=2**63),  # a time stamp that no 64 bits hold
    Reply(8, "corrupt", "the PNG data are damaged", "cd" * 32, 9, 9),
    Reply(9, "vanished", "the file was listed and is gone \ud800"),
])  # fmt: skip
def test_a_reply_arrives_as_it_was_sent(reply):
    frame = protocol.pack_reply(reply)
    assert protocol.frame_end(frame + b"next") == len(frame)
    assert protocol.frame_end(frame[:-1]) is None
    assert protocol.unpack_reply(frame) == reply


def test_requests_arrive_in_order_however_the_pipe_cuts_them():
    requests = [Request(1, 0, -1, b"/a\xff\n\0b"), Request(2, 1, 55, b""), Request(3, 0, -1, b"x" * 5000)]
    stream, got, buffer = b"".join(protocol.pack_request(*request) for request in requests), [], b""
    for at in range(0, len(stream), 7):
        buffer += stream[at : at + 7]
        while (found := protocol.unpack_request(buffer)) is not None:
            request, buffer = found
            got.append(request)
    assert got == requests
    assert buffer == b""


def test_nonsense_is_no_reply():
    frame = protocol.pack_reply(GOOD)
    head = struct.Struct("<BI")
    texts = [b"", b"{}", b"[1]", b"null", b"\xff", json.dumps([1, 2, None, None, 1, 1, 1, 1, "x", [1, 1]]).encode(),
             json.dumps([1, None, None, None, 1, 1, 1, 1, "x", ["a", 1]]).encode()]  # fmt: skip
    for text in texts:
        assert protocol.unpack_reply(head.pack(3, len(text)) + text) is None, text
    assert protocol.unpack_reply(frame[:-8] + b"\xff" * 8) is None
    with pytest.raises(ValueError, match="bytes"):
        protocol.frame_end(head.pack(3, 2**31))
    seed = 3
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(2000):
        damaged = bytearray(frame)
        damaged[int(rng.integers(5, len(frame)))] = int(rng.integers(0, 256))
        found = protocol.unpack_reply(bytes(damaged))
        assert found is None or isinstance(found, Reply)
