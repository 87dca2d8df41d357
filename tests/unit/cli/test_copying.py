"""Unpacking what a hostile container sends, and packing what is here."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peer import Peer, Reply, problem

from casemate.cli.commands.copy import split_place
from casemate.cli.copying.pack import Packer
from casemate.cli.copying.unpack import Unpacker
from casemate.cli.errors import AnswerInvalid, FileUnusable


def archive(*rows: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            if isinstance(row, tuple):
                info = tarfile.TarInfo(row[0])
                info.size = len(row[1])
                tar.addfile(info, io.BytesIO(row[1]))
            else:
                tar.addfile(row)
    return out.getvalue()


def entry(name: str, kind: bytes, link: str = "", mode: int = 0o755) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def pieces(data: bytes, step: int = 1000) -> Iterator[bytes]:
    return iter([data[at : at + step] for at in range(0, len(data), step)])


def unpack(data: bytes, root: Path, name: str | None = "new") -> Unpacker:
    root.mkdir(exist_ok=True)
    with Unpacker(str(root), owners=False) as unpacker:
        unpacker.tree(pieces(data), name)
    return unpacker


@pytest.mark.parametrize(
    "rows",
    [
        [("top/../../evil", b"x")],
        [("/etc/evil", b"x")],
        [("../evil", b"x")],
        [entry("top", tarfile.DIRTYPE), entry("top/link", tarfile.SYMTYPE, "/outside"), ("top/link/evil", b"x")],
        [entry("top", tarfile.SYMTYPE, "../outside"), ("top/evil", b"x")],
        [entry("top/a", tarfile.SYMTYPE, "../../outside"), entry("top/a/b", tarfile.DIRTYPE)],
        [("top/file", b"x"), ("top/file/below", b"x")],
        [entry("top", tarfile.DIRTYPE), entry("top/hard", tarfile.LNKTYPE, "top/../../secret")],
        [entry("top/s", tarfile.SYMTYPE, "/outside"), entry("top/hard", tarfile.LNKTYPE, "top/s/secret")],
        [("top/" + "x" * 5000, b"x")],
    ],
)
def test_no_name_leads_out(tmp_path: Path, rows: list[tarfile.TarInfo | tuple[str, bytes]]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "secret").write_text("s")
    rows = [
        entry(row.name, row.type, row.linkname.replace("/outside", str(outside)))
        if isinstance(row, tarfile.TarInfo)
        else row
        for row in rows
    ]
    with pytest.raises((AnswerInvalid, OSError)):
        unpack(archive(*rows), tmp_path / "in")
    assert not list(outside.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "outside", "secret"]


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    root = tmp_path / "in"
    (root / "new").mkdir(parents=True)
    (root / "new/file").symlink_to(victim)
    unpack(archive(("top/file", b"fresh")), root)
    assert victim.read_text() == "kept"
    assert not (root / "new/file").is_symlink()
    assert (root / "new/file").read_bytes() == b"fresh"


def test_set_uid_devices_and_modes(tmp_path: Path) -> None:
    device = entry("top/null", tarfile.CHRTYPE)
    device.devmajor, device.devminor = 1, 3
    su = entry("top/su", tarfile.REGTYPE, mode=0o4755)
    done = unpack(
        archive(entry("top", tarfile.DIRTYPE, mode=0o555), su, device, entry("top/pipe", tarfile.FIFOTYPE)),
        tmp_path / "in",
    )
    assert done.skipped == ["top/null"]
    assert (tmp_path / "in/new/su").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "in/new").stat().st_mode & 0o777 == 0o555, "a read-only folder got its files first"
    assert stat.S_ISFIFO((tmp_path / "in/new/pipe").stat().st_mode)


def test_a_folder_in_the_way_and_an_archive_cut_off(tmp_path: Path) -> None:
    (tmp_path / "in/new/file").mkdir(parents=True)
    with pytest.raises(FileUnusable, match="is in the way"):
        unpack(archive(("top/file", b"x")), tmp_path / "in")
    with pytest.raises(AnswerInvalid):
        unpack(archive(("top/a", b"x" * 5000))[:3000], tmp_path / "in")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=1500), st.integers(0, 511))
def test_garbage_raises_only_known_errors(tmp_path: Path, data: bytes, at: int) -> None:
    """Garbage, and a sound archive with garbage in its first header."""
    sound = bytearray(archive(("top/a", b"x" * 100), ("top/b", b"y")))
    sound[at : at + min(len(data), 12)] = data[:12]
    for held in (data, bytes(sound)):
        try:
            unpack(held, tmp_path / "in")
        except (AnswerInvalid, FileUnusable, OSError, MemoryError):
            continue
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_packing_and_unpacking_is_the_same(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / ("n" * 200)).mkdir(parents=True)
    (tree / "deep" / ("n" * 200) / "file").write_bytes(os.urandom(100_001))
    (tree / "exec").write_text("#!")
    (tree / "exec").chmod(0o751)
    (tree / "link").symlink_to("exec")
    (tree / "dangling").symlink_to("/nowhere")
    (tree / os.fsdecode(b"bad-\xff-name")).write_text("x")
    os.mkfifo(tree / "pipe")
    packer = Packer(owners=False)
    data = b"".join(packer.tree(str(tree), "top", False, False))
    unpack(data, tmp_path / "in")
    made = tmp_path / "in/new"
    assert sorted(p.relative_to(tree) for p in tree.rglob("*")) == sorted(p.relative_to(made) for p in made.rglob("*"))
    assert (made / "exec").stat().st_mode & 0o777 == 0o751
    assert (made / "deep" / ("n" * 200) / "file").read_bytes() == (tree / "deep" / ("n" * 200) / "file").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {row.uid for row in tar} == {0}, "everything is root's, as with docker cp"


def test_places() -> None:
    assert split_place("web:/x") == ("web", "/x")
    assert split_place("/a:b") == (None, "/a:b")
    assert split_place("./a:b") == (None, "./a:b")
    assert split_place("-") == (None, "-")
    assert split_place("plain") == (None, "plain")
    assert split_place("a/b:c") == (None, "a/b:c")


def _stat(**members: object) -> Reply:
    value = {"name": "x", "size": 1, "mode": 0o644, "mtime": 0.0, **members}
    return Reply(200, headers={"X-Casemate-Path-Stat": base64.b64encode(json.dumps(value).encode()).decode()})


ARCHIVE = "/v1/containers/web/archive"


@pytest.mark.parametrize(
    ("argv", "stats", "folder", "names"),
    [
        (["d", "web:/data"], {"/data": {"is_dir": True}}, "/data", ["d", "d/f"]),
        (["d/.", "web:/data"], {"/data": {"is_dir": True}}, "/data", ["f"]),
        (["d", "web:/new"], {}, "/", ["new", "new/f"]),
        (["d/.", "web:/new"], {}, "/", ["new", "new/f"]),
        (["d/f", "web:/etc/g"], {}, "/etc", ["g"]),
        (["d/f", "web:/etc/g"], {"/etc/g": {}}, "/etc", ["g"]),
        (["d/f", "web:/link"], {"/link": {"link_target": "real/file"}, "/real/file": {}}, "/real", ["file"]),
        (["d/f", "web:"], {"/": {"is_dir": True}}, "/", ["f"]),
        (["d/f", "web:/file/"], {"/file/": {}}, None, b"is no folder"),
        (["d/f", "web:/new/"], {}, None, b"is no folder"),
        (["d", "web:/file"], {"/file": {}}, None, b"a folder cannot be copied onto it"),
        (["none", "web:/x"], {}, None, b"'none' cannot be read"),
        (["a", "b"], {}, None, b"none is"),
        (["web:a", "web:b"], {}, None, b"both are"),
    ],
)
def test_the_names_of_docker_cp(cm, peer: Peer, tmp_path: Path, argv, stats, folder, names) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_text("content")

    def head(request) -> Reply:
        found = stats.get(request.params()["path"])
        return Reply(404) if found is None else _stat(**found)

    peer.on("HEAD", ARCHIVE, head)
    peer.on("GET", "/v1/containers/web", Reply(value={"summary": {}}))
    peer.on("PUT", ARCHIVE, Reply(204))
    done = cm("cp", *argv)
    if folder is None:
        assert done.returncode == 125
        assert names in done.stderr
        assert not peer.asked("PUT", ARCHIVE)
        return
    assert done.returncode == 0, done.stderr
    sent = peer.asked("PUT", ARCHIVE)[0]
    assert sent.params()["path"] == folder
    with tarfile.open(fileobj=io.BytesIO(sent.body)) as tar:
        assert tar.getnames() == names


def test_out_of_a_container(cm, peer: Peer, tmp_path: Path) -> None:
    data = archive(entry("d", tarfile.DIRTYPE), ("d/f", b"content"))
    peer.on("HEAD", ARCHIVE, lambda request: _stat(is_dir=True) if request.params()["path"] != "/none" else Reply(404))
    peer.on("GET", ARCHIVE, Reply(body=[data[:700], data[700:]]))
    peer.on("GET", "/v1/containers/web", Reply(value={"summary": {}}))
    assert cm("cp", "web:/d", "new").returncode == 0
    assert (tmp_path / "new/f").read_text() == "content"
    (tmp_path / "there").mkdir()
    assert cm("cp", "web:/d", "there").returncode == 0
    assert (tmp_path / "there/d/f").exists()
    assert cm("cp", "web:/d/.", "there").returncode == 0
    assert (tmp_path / "there/f").exists()
    assert peer.asked("GET", ARCHIVE)[-1].params() == {"path": "/d"}
    assert cm("cp", "web:/d", "-").stdout == data
    assert b"does not exist" in cm("cp", "web:/none", ".").stderr
    assert b"is no folder" in cm("cp", "web:/d", "no/such/place").stderr
    (tmp_path / "file").write_text("x")
    assert b"a folder cannot be copied onto it" in cm("cp", "web:/d", "file").stderr
    peer.on("GET", "/v1/containers/web", problem(404, "container.not_found", "container 'web' is not there"))
    assert b"container 'web' is not there" in cm("cp", "web:/none", ".").stderr
