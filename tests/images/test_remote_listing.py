"""Object stores list by the rules of folders, and every row's URI leads back to its object."""

import pyarrow as pa
import pytest

from detector.errors import UsageError
from detector.images.listing import list_images
from detector.storage import filesystem
from tests.images.files import names, skipped
from tests.s3 import loopback_bucket


@pytest.fixture(scope="module")
def bucket():
    with loopback_bucket() as (uri, client):
        for key in ("art/1.jpg", "art/2.png", "art/sub/3.jpg", "art/a b#?%20é.jpg", "art/[x].jpg", "art/.h/4.jpg",
                    "art/.h/5.jpg", "art/.6.jpg", "art/thumbs/7.jpg", "art/thumbs/deep/8.jpg", "other/art/9.jpg"):  # fmt: skip
            client.put_object(Bucket="bucket", Key=key, Body=key.encode())
        client.put_object(Bucket="bucket", Key="art/empty-folder/", Body=b"")
        yield uri, client


ALL = ["./art/1.jpg", "./art/2.png", "./art/[x].jpg", "./art/a b#?%20é.jpg", "./art/sub/3.jpg", "./art/thumbs/7.jpg",
       "./art/thumbs/deep/8.jpg"]  # fmt: skip


def test_a_prefix_is_a_folder(bucket):
    uri, _ = bucket
    for path in ("art", "art/"):
        listing = list_images([uri(path)])
        assert names(listing) == ALL
        assert skipped(listing) == {"./art/.h": "hidden", "./art/.6.jpg": "hidden"}
        assert listing.roots == (("art", "s3://bucket/art"),)
    for row in listing.files.to_pylist():
        files, path = filesystem(row["path"].decode())
        content = files.open_input_stream(path).read().decode()
        assert f"./{content}" == row["filename"]
        assert row["bytes"] == len(content.encode())
        assert row["modified"] is not None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("art/1.jpg", ["./art/1.jpg"]),
        ("art/*.png", ["./art/2.png"]),
        ("art/thumbs/*", ["./thumbs/7.jpg", "./thumbs/deep/8.jpg"]),
        ("art/**/8.jpg", ["./deep/8.jpg"]),
        ("*/art", ["./other/art/9.jpg"]),
        ("art/[[]x].jpg", ["./art/[x].jpg"]),
        ("art/[x].jpg", ["./art/[x].jpg"]),
    ],
)
def test_objects_and_globs_are_named_as_local_ones(bucket, path, expected):
    uri, _ = bucket
    assert names(list_images([uri(path)])) == expected


def test_a_whole_bucket_has_its_name(bucket):
    uri, _ = bucket
    assert set(names(list_images([uri("")]))) == {f"./bucket{name[1:]}" for name in [*ALL, "./other/art/9.jpg"]}


def test_a_name_and_patterns_work_on_uris(bucket):
    uri, _ = bucket
    listing = list_images([f"N={uri('art')}"], include=["*.jpg"], exclude=["thumbs", "a b*"])
    assert names(listing) == ["./N/1.jpg", "./N/[x].jpg", "./N/sub/3.jpg"]
    assert skipped(listing) == {"./N/.h": "hidden", "./N/.6.jpg": "hidden", "./N/2.png": "excluded",
                                "./N/a b#?%20é.jpg": "excluded", "./N/thumbs": "excluded"}  # fmt: skip
    assert names(list_images([f"N={uri('art/**/*.png')}"])) == ["./N/2.png"]


def test_two_sources_share_no_object_and_two_prefixes_no_name(bucket):
    uri, _ = bucket
    assert names(list_images([uri("art/sub"), uri("art/1.jpg"), uri("art")])) == sorted(
        ["./sub/3.jpg", *(name for name in ALL if "sub/" not in name)]
    )
    with pytest.raises(UsageError, match="two folders are called 'art': s3://bucket/art and s3://bucket/other/art"):
        list_images([uri("art"), uri("other/art")])


def test_a_remote_manifest_names_objects_beside_it(bucket):
    uri, client = bucket
    body = 'filename,label\n1.jpg,1\nsub/3.jpg,0\ngone.jpg,1\n.h/4.jpg,1\nsub,1\n"a b#?%20é.jpg",1\n'
    client.put_object(Bucket="bucket", Key="art/m.csv", Body=body.encode() + b"\xff.jpg,1\n")
    try:
        listing = list_images([uri("art/m.csv")])
    finally:
        client.delete_object(Bucket="bucket", Key="art/m.csv")
    assert {row["filename"]: row["bytes"] for row in listing.files.to_pylist()} == {
        "./art/1.jpg": 9, "./art/sub/3.jpg": 13, "./art/gone.jpg": None, "./art/a b#?%20é.jpg": 18,
        "./art/%FF.jpg": None}  # fmt: skip
    assert skipped(listing) == {"./art/.h/4.jpg": "hidden", "./art/sub": "folder"}
    assert listing.files["path"].type == pa.binary()


@pytest.mark.parametrize("path", ["none", "none/*.jpg", "art/*.webp", "art/empty-folder", "art/.h"])
def test_what_gives_nothing_is_wrong_use_and_shows_no_keys(bucket, path):
    uri, _ = bucket
    if path == "art/.h":
        assert names(list_images([uri(path)])) == ["./.h/4.jpg", "./.h/5.jpg"]
        return
    with pytest.raises(UsageError, match=r"s3://bucket/\S+ does not exist|holds no regular file") as caught:
        list_images([uri(path)])
    assert "secret" not in str(caught.value)


def test_a_store_that_does_not_answer_is_wrong_use():
    with pytest.raises(UsageError, match=r"NETWORK_CONNECTION|connect"):
        list_images(["s3://key:secret@bucket/x?endpoint_override=http%3A%2F%2F127.0.0.1%3A1&scheme=http"])
