"""The layer rewriter: translation, and the hostile layers that it refuses.

Hostile list (each one test): `..` in a name, in a hard link's target; a whiteout of `..`; a name of 5,000 bytes; a part
of 300 bytes; NUL in a pax name; an entry below a file, below a symbolic link, below a whiteout; a hard link to nothing,
to itself; a folder that is also a file; a layer cut off in a header, in a file, in a pax header; a damaged check sum;
text instead of tar; a single zero block in the middle; too many entries; a file, a sparse file, an attribute and an
extension header that are too large; sparse maps that overlap or lie; unknown types; overlayfs's own attributes; a uid
beyond 32 bits; a negative size.
"""

import io
import tarfile

import pytest

from casemate.image import tarheader as th
from casemate.image.errors import LayerCutOff, LayerEscapes, LayerInvalid, LayerTooLarge
from casemate.image.rewrite import Rewriter, Summary

FILE, LINK, SYM, FOLDER, CHAR = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE


def archive(*entries: tuple[str, bytes, dict], form: int = tarfile.PAX_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for name, kind, given in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            values = dict(given)
            data = values.pop("data", b"")
            info.size = len(data) if kind == FILE else 0
            for key, value in values.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def rewrite(
    data: bytes, *, chunk: int = 1 << 20, entries: int = 1000, size: int = 1 << 30, skip=frozenset()
) -> tuple[Summary, bytes]:
    out: list[bytes] = []
    chunks = (data[start : start + chunk] for start in range(0, len(data), chunk))
    rewriter = Rewriter(chunks, lambda piece: out.append(bytes(piece)), max_entries=entries, max_bytes=size, skip=skip)
    summary = rewriter.run()
    return summary, b"".join(out)


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member for member in tar}


def content(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        stream = tar.extractfile(name)
        assert stream is not None
        return stream.read()


@pytest.mark.parametrize("chunk", [1, 7, 512, 513, 1000, 1 << 20])
def test_plain_entries_pass_whatever_the_chunks(chunk):
    given = archive(
        ("a", FILE, {"data": b"x" * 700, "mode": 0o4755, "uid": 7, "gid": 8, "mtime": 99}),
        ("d", FOLDER, {"mode": 0o1777}),
        ("d/" + "n" * 150, FILE, {"data": b"long"}),
        ("s", SYM, {"linkname": "/etc/passwd"}),
        ("h", LINK, {"linkname": "./a"}),
    )
    summary, out = rewrite(given, chunk=chunk)
    found = members(out)
    assert found["a"].mode == 0o4755
    assert (found["a"].uid, found["a"].gid, found["a"].mtime) == (7, 8, 99)
    assert content(out, "a") == b"x" * 700
    assert content(out, "d/" + "n" * 150) == b"long"
    assert found["d"].mode == 0o1777
    assert found["s"].linkname == "/etc/passwd"
    assert found["h"].linkname == "a"
    assert summary.entries >= 5


@pytest.mark.parametrize("chunk", [512, 1 << 20])
def test_every_chunking_gives_the_same_bytes(chunk):
    given = archive(("etc/passwd", FILE, {"data": b"root:x:0:0::/:/bin/sh\n"}), ("x", FILE, {"data": b"1" * 5000}))
    assert rewrite(given, chunk=chunk)[1] == rewrite(given, chunk=100)[1]


def test_whiteout_becomes_device_and_opaque_becomes_attribute():
    summary, out = rewrite(
        archive(("d", FOLDER, {"mode": 0o700}), ("d/.wh.gone", FILE, {}), ("d/.wh..wh..opq", FILE, {}))
    )
    found = members(out)
    assert found["d/gone"].ischr()
    assert (found["d/gone"].devmajor, found["d/gone"].devminor) == (0, 0)
    assert found["d"].pax_headers["SCHILY.xattr.trusted.overlay.opaque"] == "y"
    assert found["d"].mode == 0o700
    assert summary.whiteouts == 1
    assert not any(".wh." in name for name in found)


def test_opaque_folder_without_an_entry_of_its_own():
    found = members(rewrite(archive(("a/b/.wh..wh..opq", FILE, {}), ("a/b/c", FILE, {})))[1])
    assert found["a/b"].pax_headers["SCHILY.xattr.trusted.overlay.opaque"] == "y"
    assert found["a/b"].mode == 0o755


def test_opaque_root_is_reported():
    assert rewrite(archive((".wh..wh..opq", FILE, {}), ("f", FILE, {})))[0].opaque_root


def test_whiteout_beside_a_new_file_is_not_needed():
    found = members(rewrite(archive((".wh.f", FILE, {}), ("f", FILE, {"data": b"new"})))[1])
    assert found["f"].isreg()


def test_whiteout_beside_a_new_folder_makes_it_opaque():
    found = members(rewrite(archive((".wh.d", FILE, {}), ("d/f", FILE, {})))[1])
    assert found["d"].pax_headers["SCHILY.xattr.trusted.overlay.opaque"] == "y"


def test_what_aufs_kept_is_passed_over():
    assert list(members(rewrite(archive((".wh..wh.plnk", FOLDER, {}), ("f", FILE, {})))[1])) == ["f"]


def test_user_files_are_noted_and_hidden_ones_too():
    summary, _ = rewrite(archive(("etc/passwd", FILE, {"data": b"p"}), ("etc/.wh.group", FILE, {})))
    assert summary.user_files == {b"etc/passwd": b"p"}
    assert summary.hidden == {b"etc/passwd", b"etc/group"}


def test_double_entry_is_found_and_left_out_in_a_second_run():
    given = archive(("f", FILE, {"data": b"old"}), ("f", FILE, {"data": b"new", "mode": 0o600}))
    summary, _ = rewrite(given)
    assert len(summary.superseded) == 1
    _, out = rewrite(given, skip=frozenset(summary.superseded))
    assert content(out, "f") == b"new"


def test_attributes_are_kept_and_overlays_own_dropped():
    pax = {
        "SCHILY.xattr.user.colour": "blue",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.system.posix_acl_access": "z",
    }
    summary, out = rewrite(archive(("f", FILE, {"pax_headers": pax})))
    kept = [key for key in members(out)["f"].pax_headers if "xattr" in key]
    assert kept == ["SCHILY.xattr.user.colour"]
    assert summary.dropped_xattrs == 3


def test_binary_attribute_keeps_every_byte():
    value = bytes(range(256))
    record = th._pax_record(b"SCHILY.xattr.security.capability", value)
    assert th.parse_pax(record) == [(b"SCHILY.xattr.security.capability", value)]


def test_layer_without_final_padding_is_read():
    given = archive(("f", FILE, {"data": b"x" * 600}))
    _, out = rewrite(given[: 512 + 600])
    assert content(out, "f") == b"x" * 600


def test_absolute_and_dotted_names_are_made_relative():
    _, out = rewrite(archive(("/abs", FILE, {}), ("./dot//x/./y", FILE, {})))
    assert set(members(out)) == {"abs", "dot/x/y"}


def test_old_tar_with_gnu_names():
    name = "d/" * 60 + "f" * 100
    _, out = rewrite(
        archive((name, FILE, {"data": b"q"}), ("l", SYM, {"linkname": "t" * 300}), form=tarfile.GNU_FORMAT)
    )
    assert content(out, name) == b"q"
    assert members(out)["l"].linkname == "t" * 300


HOSTILE = {
    "dotdot": ([("a/../../etc/x", FILE, {})], LayerEscapes),
    "hard link outside": ([("h", LINK, {"linkname": "../../etc/shadow"})], LayerEscapes),
    "whiteout of ..": ([("d/.wh...", FILE, {})], LayerEscapes),
    "whiteout of nothing": ([("d/.wh.", FILE, {})], LayerEscapes),
    "5000 byte name": ([("x/" * 2500, FILE, {})], LayerInvalid),
    "300 byte part": ([("y" * 300, FILE, {})], LayerInvalid),
    "below a file": ([("f", FILE, {}), ("f/g", FILE, {})], LayerInvalid),
    "below a symlink": ([("l", SYM, {"linkname": "/etc"}), ("l/passwd", FILE, {})], LayerInvalid),
    "below a whiteout": ([(".wh.d/x", FILE, {})], LayerInvalid),
    "hard link to nothing": ([("h", LINK, {"linkname": "absent"})], LayerInvalid),
    "hard link to itself": ([("h", LINK, {"linkname": "h"})], LayerInvalid),
    "folder and file": ([("d/x", FILE, {}), ("d", FILE, {})], LayerInvalid),
    "file and folder": ([("d", FILE, {}), ("d", FOLDER, {})], LayerInvalid),
    "root as a file": ([("./", FILE, {})], LayerInvalid),
    "unknown type": ([("v", b"V", {})], LayerInvalid),
    "device number": ([("c", CHAR, {"devmajor": 5000})], LayerInvalid),
    "huge uid": ([("f", FILE, {"uid": 1 << 33})], LayerInvalid),
    "huge attribute": ([("f", FILE, {"pax_headers": {"SCHILY.xattr.user.x": "v" * 70_000}})], LayerTooLarge),
    "huge extension": ([("f", FILE, {"pax_headers": {"comment": "v" * (1 << 21)}})], LayerTooLarge),
    "empty symlink": ([("s", SYM, {"linkname": ""})], LayerInvalid),
    "dup of a linked file": ([("f", FILE, {}), ("h", LINK, {"linkname": "f"}), ("f", FILE, {})], LayerInvalid),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layer_is_refused(name):
    entries, error = HOSTILE[name]
    with pytest.raises(error):
        rewrite(archive(*entries))


def test_nul_in_a_pax_name():
    entry = archive(("n" * 150, FILE, {}))
    with pytest.raises(LayerInvalid):
        rewrite(entry.replace(b"n" * 150, b"n" * 149 + b"\0"))


@pytest.mark.parametrize("length", [100, 512 + 100, 512 + 512 + 87])
def test_cut_off(length):
    with pytest.raises(LayerCutOff):
        rewrite(archive(("f", FILE, {"data": b"x" * 600}))[:length])


def test_cut_off_in_an_extension():
    with pytest.raises(LayerCutOff):
        rewrite(archive(("n" * 600, FILE, {}))[: 512 + 100])


def test_damaged_header():
    given = bytearray(archive(("f", FILE, {})))
    given[3] ^= 1
    with pytest.raises(LayerInvalid, match="check sum"):
        rewrite(bytes(given))


def test_text_is_not_tar():
    with pytest.raises(LayerInvalid):
        rewrite(b"<html>not a tar</html>" * 100)


def test_single_zero_block_in_the_middle():
    with pytest.raises(LayerInvalid, match="zero block"):
        rewrite(archive(("a", FILE, {}))[:512] + bytes(512) + archive(("b", FILE, {})))


def test_too_many_entries():
    with pytest.raises(LayerTooLarge, match="max_layer_files"):
        rewrite(archive(*((f"f{number}", FILE, {}) for number in range(12))), entries=10)


def test_file_beyond_the_layers_bound():
    with pytest.raises(LayerTooLarge):
        rewrite(archive(("f", FILE, {"data": b"x" * 5000})), size=4000)


def test_negative_size():
    block = bytearray(archive(("f", FILE, {}))[:512])
    block[124:136] = b"\xff" * 12
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(LayerTooLarge):
        rewrite(bytes(block))


def pax_sparse(pieces: str, real: int, stored: bytes) -> bytes:
    pax = {"GNU.sparse.map": pieces, "GNU.sparse.size": str(real), "GNU.sparse.numblocks": "1", "GNU.sparse.name": "f"}
    return archive(("GNUSparseFile.0/f", FILE, {"data": stored, "pax_headers": pax}))


def test_sparse_file_is_written_out():
    _, out = rewrite(pax_sparse("100,5,2000,5", 3000, b"helloworld"))
    assert content(out, "f") == bytes(100) + b"hello" + bytes(1895) + b"world" + bytes(995)


@pytest.mark.parametrize("pieces", ["0,5,3,5", "0,5,4000,5", "0,5", "1,x", "5"])
def test_sparse_map_that_lies(pieces):
    with pytest.raises(LayerInvalid):
        rewrite(pax_sparse(pieces, 3000, b"helloworld"))


def test_sparse_bomb():
    with pytest.raises(LayerTooLarge):
        rewrite(pax_sparse("0,10", 1 << 40, b"helloworld"))
