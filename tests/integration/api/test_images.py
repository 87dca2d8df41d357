"""Images through the API: import, export, tag, history, removal, prune; and operations with their events."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator

import pytest
from tests.integration.daemons import Daemons, rootfs_tar, running_daemons

from casemate.sdk import ApiError

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def pair() -> Iterator[Daemons]:
    with running_daemons() as daemons:
        daemons.import_busybox()
        yield daemons


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_an_export_is_an_import_elsewhere(pair: Daemons, kind: str) -> None:
    data = b"".join(pair.client.transport.stream("GET", "/v1/images/export", [("ref", "busybox"), ("format", kind)]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = set(tar.getnames())
    assert ("manifest.json" in names) if kind == "docker-archive" else ("oci-layout" in names)
    operation = pair.client.follow(pair.client.import_image(iter([data]), tag=f"again:{kind}"))
    assert operation.status == "done", operation
    assert pair.client.run(f"again:{kind}", ["echo", "ok"]).stdout == b"ok\n"
    pair.client.remove_image(f"again:{kind}")


def test_what_is_not_there_is_not_exported(pair: Daemons) -> None:
    with pytest.raises(ApiError) as error:
        list(pair.client.transport.stream("GET", "/v1/images/export", [("ref", "nonesuch")]))
    assert error.value.problem_code == "image.not_found"


def test_tag_inspect_history_and_removal_in_use(pair: Daemons) -> None:
    client = pair.client
    client.transport.ask("POST", "/v1/images/tag", (), b'{"source":"busybox","target":"other:1"}')
    names = {name for image in client.images() for name in image.names}
    assert "docker.io/library/other:1" in names
    detail = json.loads(client.transport.ask("GET", "/v1/images/inspect", [("ref", "other:1")]))
    assert detail["manifest"]["layers"]
    assert json.loads(client.transport.ask("GET", "/v1/images/history", [("ref", "other:1")]))["history"]
    created = client.create("other:1", ["true"])
    assert client.remove_image("other:1").untagged == ("docker.io/library/other:1",)
    with pytest.raises(ApiError) as error:
        client.remove_image("busybox")
    assert error.value.problem_code == "image.in_use"
    client.remove(created.id)


def test_what_holds_no_image_is_a_root_file_system_when_it_has_a_name(pair: Daemons) -> None:
    """As `docker import` has it, also packed, and with more members than an archive of images may have."""
    for packed in (rootfs_tar(), gzip.compress(rootfs_tar(), 1), _many_members(21_000)):
        operation = pair.client.follow(pair.client.import_image(iter([packed]), tag="plain"))
        assert operation.status == "done", operation
        assert operation.result["form"] == "rootfs"
    operation = pair.client.follow(pair.client.import_image(iter([rootfs_tar()]), tag=""))
    assert operation.status == "failed"
    assert operation.problem
    assert operation.problem["code"] == "image.archive_invalid"
    assert "--form rootfs" in str(operation.problem["remedy"])
    pair.client.remove_image("plain", force=True)
    for kind in ("docker-archive", "oci-archive"):
        pieces = pair.client.transport.stream("GET", "/v1/images/export", [("ref", "busybox"), ("format", kind)])
        operation = pair.client.follow(pair.client.import_image(pieces, tag="told:1"))
        assert operation.result["form"] == kind
    pair.client.remove_image("told:1")


def _many_members(count: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            tar.addfile(tarfile.TarInfo(f"file{number}"))
    return out.getvalue()


def test_an_image_of_another_platform_is_not_run(pair: Daemons) -> None:
    """Here: an archive of ours whose configuration says s390x."""
    data = b"".join(
        pair.client.transport.stream("GET", "/v1/images/export", [("ref", "busybox"), ("format", "docker-archive")])
    )
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            content = source.extractfile(member)
            held = content.read() if content is not None else b""
            if member.name.endswith(".json") and b'"architecture"' in held:
                held = held.replace(b'"architecture":"amd64"', b'"architecture":"s390x"')
                assert b"s390x" in held
            member.size = len(held) if content is not None else 0
            target.addfile(member, io.BytesIO(held))
    operation = pair.client.follow(pair.client.import_image(iter([out.getvalue()]), tag="foreign:1"))
    assert operation.status == "done", operation
    with pytest.raises(ApiError) as error:
        pair.client.create("foreign:1", ["true"])
    assert error.value.problem_code == "image.platform_foreign"
    with pytest.raises(ApiError) as error:
        pair.client.create("foreign:1", ["true"], platform="linux/amd64")
    assert error.value.problem_code == "image.platform_other"
    pair.client.remove_image("foreign:1")


def test_removal_takes_the_layers_at_hostd_too(pair: Daemons) -> None:
    import shutil  # noqa: PLC0415

    assert shutil.which("busybox")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("only-here")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"bytes"))
    operation = pair.client.follow(pair.client.import_image(iter([packed.getvalue()]), tag="gone", format_="rootfs"))
    assert operation.status == "done", operation
    before = len(list((pair.scope.folder / "host-state/layers").iterdir()))
    assert pair.client.remove_image("gone").removed
    assert len(list((pair.scope.folder / "host-state/layers").iterdir())) < before
    assert not list((pair.scope.folder / "state/staging").iterdir())


def test_a_broken_archive_fails_its_operation_and_leaves_nothing(pair: Daemons) -> None:
    operation = pair.client.follow(pair.client.import_image(iter([b"this is no tar" * 100]), tag="broken"))
    assert operation.status == "failed"
    assert operation.problem
    assert operation.problem["code"] != "internal"
    assert operation.problem["remedy"]
    assert not list((pair.scope.folder / "state/uploads").iterdir())
    assert not list((pair.scope.folder / "state/leases").iterdir())


def test_a_pull_that_cannot_work_says_why_and_can_be_listed(pair: Daemons) -> None:
    operation = pair.client.follow(pair.client.pull("localhost:1/nonesuch:1", plain_http=True))
    assert operation.status == "failed"
    assert operation.problem
    assert str(operation.problem["code"]).startswith("registry.")
    listed = json.loads(pair.client.transport.ask("GET", "/v1/operations"))["operations"]
    assert operation.id in {one["id"] for one in listed}
    with pytest.raises(ApiError) as error:
        pair.client.transport.ask("DELETE", f"/v1/operations/{operation.id}")
    assert error.value.http_status == 409


def test_df_and_prune(pair: Daemons) -> None:
    rows = {row["kind"]: row for row in json.loads(pair.client.transport.ask("GET", "/v1/df"))["rows"]}
    assert rows["images"]["count"] >= 1
    assert rows["images"]["size_bytes"] > 0
    assert rows["containers"]["size_bytes"] == -1  # not counted, and not told as nothing
    created = pair.client.create("busybox", ["true"])
    dry = json.loads(pair.client.transport.ask("POST", "/v1/prune", (), b'{"dry_run":true}'))
    assert f"container {created.id}" in dry["removed"]
    assert pair.client.inspect(created.id)
    pair.client.transport.ask("POST", "/v1/prune", (), b"{}")
    with pytest.raises(ApiError):
        pair.client.inspect(created.id)
    assert pair.client.images()  # a named image is kept
