"""safe_extract: the corpus of hostile archives leaves nothing behind, and honest ones unpack."""

import io
import stat
import struct
import tarfile
import zipfile

import pytest

from lightbox.errors import RequestError
from lightbox.readers.archives import Caps, safe_extract


def make_zip(path, entries, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content, **options)
    return path


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def refused(archive, tmp_path, why, **options):
    """The archive is refused for that reason, and neither the destination nor anything beside it appears."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match=why):
        safe_extract(archive, tmp_path / "out", **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_and_tar_unpack_to_their_files(tmp_path):
    entries = [("a.txt", b"1"), ("imgs/x/b.txt", b"22")]
    make_zip(tmp_path / "a.zip", entries)
    make_tar(tmp_path / "a.tgz", [(member(name), content) for name, content in entries])
    make_tar(tmp_path / "a.tar", [(member(name), content) for name, content in entries], "w")
    for name in ("a.zip", "a.tgz", "a.tar"):
        dest = tmp_path / f"out-{name}"
        files = safe_extract(tmp_path / name, dest)
        assert files == [dest / "a.txt", dest / "imgs" / "x" / "b.txt"]
        assert [file.read_bytes() for file in files] == [b"1", b"22"]


SLIPS = ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt"]


@pytest.mark.parametrize("name", SLIPS)
def test_zip_slip_is_refused(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", [("good.txt", b"1"), (zipfile.ZipInfo(name), b"evil")])
    refused(archive, tmp_path, "leads outside")


@pytest.mark.parametrize("name", SLIPS)
def test_tar_slip_is_refused(tmp_path, name):
    refused(make_tar(tmp_path / "a.tar", [(member(name), b"evil")], "w"), tmp_path, "leads outside")


@pytest.mark.parametrize(
    "info",
    [
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.SYMTYPE, "inside.txt"),
        member("link", tarfile.LNKTYPE, "inside.txt"),
        member("device", tarfile.CHRTYPE),
        member("device", tarfile.BLKTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
)
def test_tar_links_and_devices_are_refused(tmp_path, info):
    archive = make_tar(tmp_path / "a.tar", [(member("inside.txt"), b"1"), (info, b"")], "w")
    refused(archive, tmp_path, "a link, a device or encrypted")


def test_zip_symbolic_link_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(make_zip(tmp_path / "a.zip", [(info, "/etc/passwd")]), tmp_path, "a link")


def test_encrypted_zip_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a.txt", b"1")])
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    archive.write_bytes(content)
    refused(archive, tmp_path, "encrypted")


@pytest.mark.parametrize("names", [("A.txt", "a.TXT"), ("caf\u00e9.txt", "cafe\u0301.txt")])
def test_names_that_collide_are_refused(tmp_path, names):
    refused(make_zip(tmp_path / "a.zip", [(name, b"1") for name in names]), tmp_path, "same name")


def test_caps_on_count_total_and_ratio(tmp_path):
    many = make_zip(tmp_path / "many.zip", [(f"{n}.txt", b"1") for n in range(11)])
    refused(many, tmp_path, "entry 11, and 10 are allowed", caps=Caps(entries=10))
    big = make_zip(tmp_path / "big.zip", [("a", b"x" * 600), ("b", b"x" * 600)])
    refused(big, tmp_path, "exceeds 1000 bytes", caps=Caps(total_bytes=1000))
    bomb = make_zip(tmp_path / "bomb.zip", [("zeros", b"\0" * (17 << 20))])
    refused(bomb, tmp_path, "over 200 times the archive's size")
    tar = make_tar(tmp_path / "bomb.tgz", [(member("zeros"), b"\0" * (17 << 20))])
    refused(tar, tmp_path, "over 200 times the archive's size")


def test_zip_that_lies_about_its_size_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a.txt", b"x" * 5000)])
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(mark) + offset, 10)
    archive.write_bytes(content)
    refused(archive, tmp_path, "cannot be unpacked")


def test_broken_and_foreign_archives_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a.txt", b"x" * 5000)])
    content = bytearray(archive.read_bytes())
    content[45] ^= 0xFF  # inside the packed data
    archive.write_bytes(content)
    refused(archive, tmp_path, "cannot be unpacked")
    tar = make_tar(tmp_path / "a.tgz", [(member("a"), bytes(range(256)) * 400)])
    tar.write_bytes(tar.read_bytes()[:-300])
    refused(tar, tmp_path, "cannot be unpacked")
    (tmp_path / "a.txt").write_text("text")
    refused(tmp_path / "a.txt", tmp_path, "neither zip nor tar")
    refused(tmp_path / "none.zip", tmp_path, "no such file")


def test_folder_with_content_is_not_unpacked_into(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("a.txt", b"1")])
    (tmp_path / "out").mkdir()
    assert safe_extract(archive, tmp_path / "out") == [tmp_path / "out" / "a.txt"]
    refused(archive, tmp_path, "not empty")
