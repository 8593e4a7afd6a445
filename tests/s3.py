"""An S3 on the loopback address, inside the test's own process."""

import contextlib
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@contextlib.contextmanager
def loopback_bucket() -> Iterator[tuple[Callable[[str], str], Any]]:
    """A server with one empty bucket: (path in the bucket → URI with keys, boto3 client). Skips where moto is absent."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    # moto keeps one state for the whole process: begin without what an earlier server's tests left.
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")).close()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **KEYS)
    client.create_bucket(Bucket="bucket")
    options = f"endpoint_override=http%3A%2F%2F127.0.0.1%3A{port}&scheme=http"
    try:
        yield lambda path: f"s3://key:secret@bucket/{path}?{options}", client
    finally:
        client.close()
        server.stop()
