"""Small helpers of the listing's tests."""

import os


def make(folder, *names, data=b"x"):
    """Create files (text or bytes names) below a folder."""
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


def names(listing):
    return listing.files["filename"].to_pylist()


def skipped(listing):
    reasons = dict(zip(*listing.skipped.to_pydict().values(), strict=True))
    assert len(reasons) == len(listing.skipped)
    return reasons
