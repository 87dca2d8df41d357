"""Any tree through the rewriter and `tar2sqfs` comes out as it went in; any bytes give a value or one of our errors."""

import contextlib
import io
import shutil
import subprocess
import tarfile
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.image import sparse
from casemate.image import tarheader as th
from casemate.image.convert import convert_layer
from casemate.image.jobs import Limits
from casemate.image.rewrite import Rewriter, clean_name
from casemate.image.store import Store
from casemate.image.tarheader import Entry
from casemate.spec.errors import CasemateError
from casemate.spec.reference import ReferenceInvalid, parse_reference

part = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=60).filter(
    lambda text: text not in (".", "..") and not text.startswith(".wh.") and len(text.encode()) < 255
)
trees = st.dictionaries(
    st.tuples(part, part),
    st.tuples(st.binary(max_size=3000), st.integers(0, 0o7777), st.integers(0, 2**32 - 2)),
    max_size=8,
)


def tar(tree):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for (folder, name), (data, mode, uid) in tree.items():
            info = tarfile.TarInfo(f"{folder}.d/{name}")
            info.size, info.mode, info.uid, info.gid = len(data), mode, uid, uid
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def rewritten(data, sizes=(1 << 20,)):
    def chunks():
        position = number = 0
        while position < len(data):
            step = sizes[number % len(sizes)]
            yield data[position : position + step]
            position += step
            number += 1

    out = []
    Rewriter(chunks(), lambda piece: out.append(bytes(piece)), max_entries=1000, max_bytes=1 << 24).run()
    return b"".join(out)


@given(trees, st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_whatever_the_chunks_the_same_comes_out(tree, sizes):
    data = tar(tree)
    out = rewritten(data, sizes)
    assert out == rewritten(data)
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        found = {member.name: member for member in archive}
        assert len(found) == len(tree)
        for (folder, name), (data, mode, uid) in tree.items():
            member = found[f"{folder}.d/{name}"]
            assert (member.mode, member.uid) == (mode, uid)
            stream = archive.extractfile(member)
            assert stream is not None
            assert stream.read() == data


@pytest.mark.skipif(not shutil.which("tar2sqfs"), reason="missing: tar2sqfs")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees)
def test_squashfs_holds_what_the_tar_held(tree):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.create()
        record = convert_layer(store, None, Limits(), lambda _attempt: iter([tar(tree)]))
        back = subprocess.run(
            ["sqfs2tar", str(store.staged_path(record.squashfs_digest))], capture_output=True, check=True
        ).stdout
    with tarfile.open(fileobj=io.BytesIO(back)) as archive:
        found = {member.name: member for member in archive if member.isreg()}
        assert {name: member.uid for name, member in found.items()} == {
            f"{a}.d/{b}": uid for (a, b), (_, _, uid) in tree.items()
        }


@given(trees, st.data())
def test_damaged_tar_gives_our_error_or_a_tar(tree, draw):
    data = bytearray(tar(tree))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        out = rewritten(bytes(data[: draw.draw(st.integers(0, len(data)))]))
    except CasemateError:
        return
    assert len(out) % 512 == 0


@given(st.binary(max_size=5000))
def test_any_bytes(data):
    with contextlib.suppress(CasemateError):
        rewritten(data)


@given(st.binary(max_size=300))
def test_pax_and_names(data):
    for parse in (
        th.parse_pax,
        clean_name,
        lambda raw: th.octal(raw[:12], "x"),
        lambda raw: sparse.from_pax([(b"GNU.sparse.map", raw)]),
    ):
        with contextlib.suppress(CasemateError):
            parse(data)


entries = st.builds(
    Entry,
    name=st.binary(min_size=1, max_size=400).map(lambda raw: raw.replace(b"\0", b"x").replace(b"/", b"y")),
    kind=st.just(th.REGULAR), size=st.integers(0, 2**40), mode=st.integers(0, 0o7777), uid=st.integers(0, th.MAX_ID),
    gid=st.integers(0, th.MAX_ID), mtime=st.integers(0, th.MAX_MTIME), link=st.just(b""),
    xattrs=st.dictionaries(st.just(b"user.x"), st.binary(max_size=2000)),
)  # fmt: skip


@given(entries)
def test_what_we_build_python_reads(entry):
    info = tarfile.TarFile(fileobj=io.BytesIO(th.build(entry) + bytes(1024))).next()
    assert info is not None
    assert info.name.encode("utf-8", "surrogateescape").rstrip(b"/") == entry.name.rstrip(b"/")
    assert (info.size, info.mode, info.uid, info.gid, info.mtime) == (
        entry.size,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
    )


@given(st.text(max_size=200))
def test_references_are_stable(text):
    try:
        parsed = parse_reference(text)
    except ReferenceInvalid:
        return
    assert parse_reference(str(parsed)) == parsed
    assert parse_reference(parsed.familiar) == parsed
