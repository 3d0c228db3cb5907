import datetime as dt

import pytest

from mtlops.data.archives import read_members
from mtlops.errors import ArtefactError
from tests.data.miniatures import tar, wheel


def test_members_of_a_zip_come_with_their_dates(tmp_path):
    path = wheel(tmp_path / "a.whl", {"one": b"1", "two": b"2"})
    two, one = read_members(path, ["two", "one"])
    assert (one.content, two.content) == (b"1", b"2")
    assert one.modified == dt.datetime(2018, 9, 21, 6, 20, tzinfo=dt.UTC)


def test_members_of_a_tar_in_a_tar_come_with_their_dates(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar({"inner.tar.gz": tar({"one": b"1"})}))
    (inner,) = read_members(tmp_path / "a.tar.gz", ["inner.tar.gz"])
    (one,) = read_members(inner.content, ["one"])
    assert one.content == b"1"
    assert one.modified == dt.datetime(2014, 5, 30, 11, 2, tzinfo=dt.UTC)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_missing_member_is_named(tmp_path, kind):
    if kind == "zip":
        wheel(tmp_path / "archive", {"one": b"1"})
    else:
        (tmp_path / "archive").write_bytes(tar({"one": b"1"}))
    with pytest.raises(ArtefactError, match="'two'"):
        read_members(tmp_path / "archive", ["two"])


@pytest.mark.parametrize(
    "content", [b"", b"neither zip nor tar", tar({"one": b"1" * 9999})[:60]], ids=["empty", "other", "cut"]
)
def test_a_damaged_archive_is_an_artefact_error(tmp_path, content):
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(ArtefactError, match="archive: is not a readable archive"):
        read_members(tmp_path / "archive", ["one"])
