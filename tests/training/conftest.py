"""One private Ray for all tests of this folder that train in this process."""

import pytest

from detector.cluster import connect


@pytest.fixture(scope="package")
def ray_here():
    with connect(None, num_cpus=2) as cluster:
        yield cluster
