"""TLS with client certificates: who has one is named in the audit log, and holds no grant; who has none stays out."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import Daemons, ensure_user, running_daemons

from casemate.sdk import ApiAway, ApiError, Client, Transport
from casemate.spec.workload import BindMount

pytestmark = pytest.mark.root


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _certificate(folder: Path, name: str, subject: str, extension: str, authority: str = "ca") -> None:
    (folder / f"{name}.ext").write_text(extension)
    _openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
             "-subj", subject)  # fmt: skip
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
             "-CAcreateserial", "-days", "2", "-out", f"{name}.crt", "-extfile", f"{name}.ext")  # fmt: skip


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemons, str, Path]]:
    if shutil.which("openssl") is None:
        pytest.skip("missing: openssl")
    ensure_user()
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "other"):
        _openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
                 f"{name}.crt", "-days", "2", "-subj", f"/CN={name}")  # fmt: skip
    _certificate(folder, "server", "/CN=server", "subjectAltName=IP:127.0.0.1")
    _certificate(folder, "ann", "/CN=ann", "subjectAltName=email:ann@example.org")
    _certificate(folder, "mallory", "/CN=mallory", "subjectAltName=email:m@example.org", "other")
    # pytest's folders are private: casemated reads copies.
    shared = Path("/tmp") / f"casemate-test-tls-{folder.name}-{id(folder):x}"
    shutil.copytree(folder, shared)
    subprocess.run(["chown", "-R", "casemate", str(shared)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "CASEMATE_API_TLS_LISTEN": f"127.0.0.1:{port}",
        "CASEMATE_API_TLS_CERTIFICATE": str(shared / "server.crt"),
        "CASEMATE_API_TLS_KEY": str(shared / "server.key"),
        "CASEMATE_API_TLS_CLIENT_CA": str(shared / "ca.crt"),
    }
    try:
        with running_daemons(**settings) as daemons:
            daemons.import_busybox()
            yield daemons, f"127.0.0.1:{port}", folder
    finally:
        shutil.rmtree(shared)


def client(host: str, folder: Path, name: str | None) -> Client:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    return Client(Transport(host=host, context=context, timeout_s=30.0))


def test_a_client_certificate_opens_the_api_and_names_its_holder(tls: tuple[Daemons, str, Path]) -> None:
    daemons, host, folder = tls
    ran = client(host, folder, "ann").run("busybox", ["echo", "over tls"])
    assert (ran.exit_code, ran.stdout) == (0, b"over tls\n")
    rows = json.loads(daemons.client.transport.ask("GET", "/v1/audit", [("limit", "1000")]))["rows"]
    assert "tls:ann@example.org" in {row["who"] for row in rows if row["action"] == "container.start"}


def test_without_a_socket_to_show_no_grant_is_used(tls: tuple[Daemons, str, Path]) -> None:
    _, host, folder = tls
    with pytest.raises(ApiError) as error:
        client(host, folder, "ann").run("busybox", ["true"], mounts=(BindMount("/etc", "/x"),))
    assert error.value.http_status == 403
    assert error.value.problem_code.startswith("access.")
    with pytest.raises(ApiError) as error:
        client(host, folder, "ann").transport.ask("GET", "/v1/audit")
    assert error.value.http_status == 403


@pytest.mark.parametrize("name", [None, "mallory"])
def test_no_certificate_or_another_authority_s(tls: tuple[Daemons, str, Path], name: str | None) -> None:
    _, host, folder = tls
    with pytest.raises((ApiAway, ssl.SSLError, OSError)):
        client(host, folder, name).version()
