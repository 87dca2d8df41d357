"""Contents of layers: written by the image worker's conversion in its one reading, read back, damaged, replaced."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.image.convert import convert_layer
from casemate.image.jobs import Limits
from casemate.image.observe import LayerWatch
from casemate.image.store import Store
from casemate.trust.packages.apply import ContentsStore, LayerNotScanned
from casemate.trust.packages.merge import merge
from casemate.trust.packages.model import PackageListInvalid

STATUS = b"Package: libc6\nStatus: install ok installed\nSource: glibc\nVersion: 2.36-9\n\n"


def layer(*files: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.skipif(not shutil.which("tar2sqfs"), reason="missing: tar2sqfs (package squashfs-tools-ng)")
@pytest.mark.parametrize("twice", [False, True])
def test_conversion_leaves_the_package_list(tmp_path: Path, twice: bool) -> None:
    store = Store(str(tmp_path / "images"))
    store.create()
    data = layer(
        ("etc/os-release", b"ID=debian\nVERSION_ID=12\n"), *[("var/lib/dpkg/status", STATUS)] * (2 if twice else 1)
    )
    contents: LayerWatch = ContentsStore(tmp_path / "contents")

    def source(_attempt: int) -> Iterator[bytes]:
        return iter([gzip.compress(data)])

    diff_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
    convert_layer(store, diff_id, Limits(), source, watch=contents)
    found = ContentsStore(tmp_path / "contents").load(diff_id)
    assert [row.name for row in found.lists["var/lib/dpkg/status"]] == ["libc6"]
    assert not merge([found]).unreadable


def test_what_is_not_there_or_damaged(tmp_path: Path) -> None:
    contents = ContentsStore(tmp_path)
    diff_id = "sha256:" + "ab" * 32
    with pytest.raises(LayerNotScanned):
        contents.load(diff_id)
    contents.close(diff_id, contents.open())
    assert contents.load(diff_id).lists == {}
    (path,) = tmp_path.rglob("*.json")
    for data in (
        b"",
        b"{",
        path.read_bytes().replace(b'"scanner_version":', b'"scanner_version":9') or b"",
        b'{"scanner_version":99}',
    ):
        path.write_bytes(data)
        if data != path.read_bytes() or data in (b"", b"{") or b"99" in data:
            with pytest.raises(LayerNotScanned):
                contents.load(diff_id)
    with pytest.raises(PackageListInvalid):
        contents.close(diff_id, object())
    contents.drop(diff_id)
    contents.drop(diff_id)
    assert not list(tmp_path.rglob("*.json"))
