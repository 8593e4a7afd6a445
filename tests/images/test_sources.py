"""Sources: what ``--images`` may say, how its files are called, and what is refused with a line that helps."""

import os

import pytest

from detector.errors import UsageError
from detector.images.listing import list_images
from tests.images.files import make, names, skipped


@pytest.fixture
def art(tmp_path, monkeypatch):
    """An empty folder ``art``, seen from its parent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "art").mkdir()
    return tmp_path / "art"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["art"], ["./art/1.jpg", "./art/2.png", "./art/sub/3.jpg"]),
        (["art/"], ["./art/1.jpg", "./art/2.png", "./art/sub/3.jpg"]),
        (["./art/sub/.."], ["./art/1.jpg", "./art/2.png", "./art/sub/3.jpg"]),
        (["link"], ["./art/1.jpg", "./art/2.png", "./art/sub/3.jpg"]),
        (["art/*.jpg"], ["./art/1.jpg"]),
        (["art/*"], ["./art/1.jpg", "./art/2.png", "./art/sub/3.jpg"]),
        (["a*/sub"], ["./art/sub/3.jpg"]),
        (["*/*.jpg"], ["./art/1.jpg"]),
        (["art/**/*.jpg"], ["./art/1.jpg", "./sub/3.jpg"]),
        (["art/**"], ["./art/1.jpg", "./art/2.png", "./sub/3.jpg"]),
        (["X=art/**/*.jpg"], ["./X/1.jpg", "./X/sub/3.jpg"]),
        (["X=art"], ["./X/1.jpg", "./X/2.png", "./X/sub/3.jpg"]),
        (["X=art/1.jpg"], ["./X/1.jpg"]),
        (["art/1.jpg"], ["./art/1.jpg"]),
        (["art/1.jpg", "art/1.jpg"], ["./art/1.jpg"]),
        (["art", "art/*.jpg", "art/1.jpg"], ["./art/1.jpg", "./art/2.png", "./art/sub/3.jpg"]),
        (["art/sub", "art"], ["./art/1.jpg", "./art/2.png", "./sub/3.jpg"]),
        (["art", "art/sub"], ["./art/1.jpg", "./art/2.png", "./art/sub/3.jpg"]),
        (["X=art", "art"], ["./X/1.jpg", "./X/2.png", "./X/sub/3.jpg"]),
        (["art/[12].*"], ["./art/1.jpg", "./art/2.png"]),
    ],
)
def test_sources_name_their_files_as_the_contract_says(art, sources, expected):
    make(art, "1.jpg", "2.png", "sub/3.jpg")
    os.symlink("art", "link")
    assert names(list_images(sources)) == expected


def test_a_folder_given_as_file_uri_or_from_inside_itself_has_its_name(art, monkeypatch):
    make(art, "a b/1.jpg")
    assert names(list_images([f"file://{art}/a%20b"])) == ["./a b/1.jpg"]
    monkeypatch.chdir(art)
    assert names(list_images(["."])) == ["./art/a b/1.jpg"]


def test_home_is_found_where_no_shell_expands_it(art, monkeypatch):
    make(art, "1.jpg")
    monkeypatch.setenv("HOME", str(art.parent))
    monkeypatch.chdir("/")
    assert names(list_images(["~/art"])) == ["./art/1.jpg"]
    assert names(list_images(["N=~/art"])) == ["./N/1.jpg"]


def test_a_file_that_is_a_link_and_named_itself_is_resolved(art):
    make(art, "real/1.jpg")
    os.symlink("real/1.jpg", art / "latest.jpg")
    assert names(list_images(["art/latest.jpg"])) == ["./real/1.jpg"]
    with pytest.raises(UsageError, match="1 other entries"):
        list_images(["art/lat*"])


def test_a_literal_name_wins_over_its_meaning_as_a_pattern_or_a_naming(art):
    make(art.parent, "a[1]/x.jpg", "a1/y.jpg", "X=art/z.jpg", "q*.jpg", "qq.jpg")
    make(art, "1.jpg")
    assert names(list_images(["a[1]"])) == ["./a[1]/x.jpg"]
    assert names(list_images(["a[1]/*.jpg"])) == ["./a[1]/x.jpg"]
    assert names(list_images(["X=art"])) == ["./X=art/z.jpg"]
    assert names(list_images(["q*.jpg"])) == [f"./{art.parent.name}/q*.jpg"]


def test_globs_leave_hidden_names_and_links_alone_and_count_the_links(art):
    make(art, "a/1.jpg", ".h/2.jpg", "a/.3.jpg")
    os.symlink("a", art / "b")
    listing = list_images(["art/*/*.jpg"])
    assert names(listing) == ["./a/1.jpg"]
    assert skipped(listing) == {"./art/b": "link"}
    assert names(list_images(["art/**/*.jpg"])) == ["./a/1.jpg"]


def test_two_folders_of_one_name_are_refused_unless_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a/x/1.jpg", "b/x/1.jpg")
    with pytest.raises(UsageError, match=f"two folders are called 'x': {tmp_path}/a/x and {tmp_path}/b/x.*NAME="):
        list_images(["a/x", "b/x"])
    with pytest.raises(UsageError, match="two folders are called 'x'"):
        list_images(["*/x/*.jpg"])
    listing = list_images(["a/x", "B=b/x"])
    assert names(listing) == ["./B/1.jpg", "./x/1.jpg"]
    assert listing.roots == (("B", f"{tmp_path}/b/x"), ("x", f"{tmp_path}/a/x"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "'none' does not exist"),
        ("X=none", "'none' does not exist"),
        ("", "'' does not exist"),
        ("empty", "'empty' holds no regular file$"),
        ("only-links", "'only-links' holds no regular file; 1 other"),
        ("pipe", "'pipe' holds no regular file"),
        ("none/*.jpg", "no file fits 'none/\\*.jpg'"),
        ("*.nothing", "no file fits"),
        ("dangling", "'dangling' cannot be read: No such file"),
        ("round", "'round' cannot be read: Too many levels"),
        ("/", "has no name"),
        ("s3:", "does not exist"),
        ("a/b=c", "'a/b=c' does not exist"),
        ("nul\0", "does not exist"),
        ("file://elsewhere/x", "another machine"),
    ],
)
def test_a_source_that_gives_nothing_is_wrong_use(art, source, message):
    os.makedirs("empty/deep/er")
    os.makedirs("only-links")
    os.symlink("/etc/passwd", "only-links/x")
    os.mkfifo("pipe")
    os.symlink("nowhere", "dangling")
    os.symlink("round", "round")
    make(art, "1.jpg")
    with pytest.raises(UsageError, match=message):
        list_images(["art", source])


def test_no_source_and_a_limit_below_one_are_wrong_use(art):
    make(art, "1.jpg")
    with pytest.raises(UsageError, match="no images named"):
        list_images([])
    with pytest.raises(UsageError, match="--limit 0"):
        list_images(["art"], limit=0)


def test_a_file_one_source_excludes_and_another_gives_is_a_row_only(art):
    make(art, "sub/1.jpg", "2.jpg")
    listing = list_images(["art", "art/sub"], exclude=["sub/*"])
    assert names(listing) == ["./art/2.jpg", "./sub/1.jpg"]
    assert skipped(listing) == {}


def test_hidden_is_told_before_kind_and_a_hidden_root_may_be_named(art):
    make(art, ".h/1.jpg")
    os.symlink(".h", art / ".l")
    with pytest.raises(UsageError, match="2 other entries"):
        list_images(["art"])
    assert names(list_images(["art/.h"])) == ["./.h/1.jpg"]
