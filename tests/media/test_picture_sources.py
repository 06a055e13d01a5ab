from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import DataError
from edge.media.picture_sources import open_pictures, shards_of

Encoder = Callable[..., bytes]


def _fill(folder: Path, *names: str) -> Path:
    """Files whose content is their name: listing decodes nothing."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return folder


def _names(source: Path) -> list[str]:
    return [picture.name for picture in open_pictures(source)]


def test_a_folder_is_listed_by_name_with_everything_below_it(tmp_path: Path) -> None:
    _fill(tmp_path, "b.jpg", "a/z.PNG", "a/deep/er.JPEG", "B.webp", "c.tif", "d.TIFF", "e.bmp", "f.ppm", "g.Jpg")
    assert _names(tmp_path) == [
        "B.webp", "a/deep/er.JPEG", "a/z.PNG", "b.jpg", "c.tif", "d.TIFF", "e.bmp", "f.ppm", "g.Jpg",
    ]  # fmt: skip


def test_a_folder_leaves_out_hidden_files_and_what_is_no_picture(tmp_path: Path) -> None:
    _fill(tmp_path, "a.jpg", ".b.jpg", ".thumbs/c.jpg", "labels.csv", "list.txt", "README.md", "jpg", "d.jpg.part")
    assert _names(tmp_path) == ["a.jpg"]


def test_the_order_does_not_depend_on_how_the_folder_was_made(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(30)]
    one, two = _fill(tmp_path / "one", *names), _fill(tmp_path / "two", *reversed(names))
    assert _names(one) == _names(two) == sorted(names)


def test_names_with_blanks_brackets_and_other_scripts(tmp_path: Path) -> None:
    names = ["a b.jpg", "[x]*?.jpg", "犬/猫.jpg", "#1.jpg", "with\ttab.jpg"]
    assert sorted(_names(_fill(tmp_path, *names))) == sorted(names)
    assert all(picture.read() for picture in open_pictures(tmp_path))


def test_a_name_that_is_not_utf8_can_be_read_and_printed(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (picture,) = open_pictures(tmp_path)
    assert picture.name == r"caf\xe9.jpg"
    assert picture.where.encode()
    assert picture.read() == b"x"


def test_a_single_picture(tmp_path: Path) -> None:
    _fill(tmp_path, "one.JPG", "two.jpg")
    assert _names(tmp_path / "one.JPG") == ["one.JPG"]


def test_a_pattern(tmp_path: Path) -> None:
    _fill(tmp_path, "a1.jpg", "a2.jpg", "b1.jpg", "a3.txt")
    assert _names(tmp_path / "a*") == ["a1.jpg", "a2.jpg"]


def test_a_pattern_over_folders_names_from_what_they_share(tmp_path: Path) -> None:
    _fill(tmp_path, "x/a.jpg", "y/a.jpg")
    assert _names(tmp_path / "?" / "*.jpg") == ["x/a.jpg", "y/a.jpg"]


def test_a_relative_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path, "a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    assert _names(Path("*.jpg")) == ["a.jpg", "b.jpg"]


def test_linked_folders_are_entered_once_and_under_their_own_name(tmp_path: Path) -> None:
    _fill(tmp_path, "real/a.jpg")
    (tmp_path / "a-link").symlink_to("real")
    assert _names(tmp_path) == ["real/a.jpg"]


def test_a_link_to_pictures_elsewhere_is_followed(tmp_path: Path) -> None:
    _fill(tmp_path, "disk/a.jpg", "set/b.jpg")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "disk")
    assert _names(tmp_path / "set") == ["b.jpg", "more/a.jpg"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    _fill(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to("self")
    assert _names(tmp_path) == ["a/1.jpg", "b/2.jpg"]


@pytest.mark.parametrize("target", ["gone.jpg", "loop.jpg"], ids=["broken", "circle"])
def test_a_picture_that_is_a_bad_link_is_listed_and_fails_on_reading(target: str, tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to(target)
    (picture,) = open_pictures(tmp_path)
    with pytest.raises(DataError, match=r"loop\.jpg: cannot read the image"):
        picture.read()


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="no images"):
        open_pictures(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    _fill(tmp_path, "closed/a.jpg").joinpath("closed").chmod(0)
    try:
        with pytest.raises(DataError, match=r"closed: cannot read.*: Permission denied"):
            open_pictures(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read(tmp_path: Path) -> None:
    _fill(tmp_path, "a.jpg").joinpath("a.jpg").chmod(0)
    (picture,) = open_pictures(tmp_path)
    with pytest.raises(DataError, match="Permission denied"):
        picture.read()


def test_a_picture_that_vanishes(tmp_path: Path) -> None:
    (picture,) = open_pictures(_fill(tmp_path, "a.jpg"))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg: cannot read the image: No such file"):
        picture.read()


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    _fill(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"no images: looked for images \(avif, bmp, gif, heic.*TFRecord shards"):
        open_pictures(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "nothing.jpg", "no*.jpg", "nothing.txt", "x" * 300, "~nobody-here/x"])
def test_a_source_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        open_pictures(tmp_path / name)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    _fill(tmp_path, "notes.doc")
    with pytest.raises(DataError, match="does not know this kind of file"):
        open_pictures(tmp_path / "notes.doc")


def test_labels_are_joined(tmp_path: Path) -> None:
    _fill(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "labels.csv").write_text("file,class_index\nb.jpg,7\na.jpg,3\n")
    pictures = open_pictures(tmp_path, labels=tmp_path / "labels.csv")
    assert [(p.name, p.label) for p in pictures] == [("a.jpg", 3), ("b.jpg", 7)]


def test_labels_must_cover_the_source(tmp_path: Path) -> None:
    _fill(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "labels.csv").write_text("file,class_index\nb.jpg,7\n")
    with pytest.raises(DataError, match=r"2 of 3 images have no label: a\.jpg, c\.jpg"):
        open_pictures(tmp_path, labels=tmp_path / "labels.csv")


def test_a_folder_with_pictures_and_shards_is_ambiguous(tmp_path: Path) -> None:
    _fill(tmp_path, "a.jpg", "train-00000-of-00001")
    with pytest.raises(DataError, match="contains both images"):
        open_pictures(tmp_path)
    with pytest.raises(DataError, match="contains both images"):
        shards_of(tmp_path)


def test_shards_of_anything_else_is_nothing(tmp_path: Path) -> None:
    _fill(tmp_path, "a.jpg")
    assert shards_of(tmp_path) == []
    assert shards_of(tmp_path / "a.jpg") == []
    assert shards_of(tmp_path / "nothing*") == []


def test_what_is_no_set_of_pictures_names_the_right_option(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match="this is a video") as video:
        open_pictures(tmp_path / "clip.mp4")
    assert video.value.hint == f"--video {tmp_path}/clip.mp4"
    with pytest.raises(DataError, match="this is a URL") as url:
        open_pictures(Path("rtsp://me:c4nary@host/s"))
    assert url.value.hint == "--camera rtsp://***@host/s"


def test_other_endings_of_jpeg(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.JPE", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [picture.name for picture in open_pictures(tmp_path)] == ["a.jfif", "b.JPE", "c.jpg"]
