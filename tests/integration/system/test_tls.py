"""TLS over TCP: a client certificate of the right authority is the way in, and no grant reaches over it.

What works over it is in tests/integration/cli/test_tls.py; here stands what must not.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.daemons import USER, ensure_user
from tests.integration.system.site import IMAGE, Site, installed, refused

pytestmark = pytest.mark.root


def openssl(folder: Path, *argv: str) -> None:
    subprocess.run(["openssl", *argv], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; a server and a client of the first, a client of the second, one that is over."""
    folder = tmp_path_factory.mktemp("tls")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1")
    for authority in ("ca", "other"):
        openssl(folder, "req", "-x509", *key, "-days", "2", "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
                "-subj", f"/CN={authority}", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name, authority, days in (("server", "ca", "2"), ("client", "ca", "2"), ("stranger", "other", "2"),
                                  ("late", "ca", "-1")):  # fmt: skip
        openssl(folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                "-CAcreateserial", "-days", days, "-extfile", "ext", "-out", f"{name}.pem")  # fmt: skip
    ensure_user()
    os.chown(folder / "server.key", pwd.getpwnam(USER).pw_uid, -1)
    for place in (folder, *folder.parents):
        if place.name.startswith(("pytest", "tls")):
            place.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def site(certificates: Path, port: int) -> Iterator[Site]:
    with installed(
        CASEMATE_API_TLS_LISTEN=f"127.0.0.1:{port}",
        CASEMATE_API_TLS_CERTIFICATE=str(certificates / "server.pem"),
        CASEMATE_API_TLS_KEY=str(certificates / "server.key"),
        CASEMATE_API_TLS_CLIENT_CA=str(certificates / "ca.pem"),
        CASEMATE_GRANTS_HOST_PATHS="root,client",
    ) as made:
        yield made


def environment(certificates: Path, port: int, name: str, authority: str = "ca") -> dict[str, str]:
    return {
        "CASEMATE_HOST": f"tcp://127.0.0.1:{port}",
        "CASEMATE_TLS_CERT": str(certificates / f"{name}.pem"),
        "CASEMATE_TLS_KEY": str(certificates / f"{name}.key"),
        "CASEMATE_TLS_CA": str(certificates / f"{authority}.pem"),
    }


def test_who_has_no_right_certificate_is_nobody(site: Site, certificates: Path, port: int) -> None:
    assert site("ps", environment=environment(certificates, port, "client")).returncode == 0, "the test can fail"
    for name in ("stranger", "late"):
        done = site("ps", environment=environment(certificates, port, name))
        assert done.returncode == 125, (name, done)
        assert b"canary" not in done.stdout
        assert b"remedy:" in done.stderr
    # No certificate at all, and no TLS at all.
    bare = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    answer = b""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        bare.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(b"GET /v1/containers HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = secure.recv(100)
    assert not answer
    with socket.create_connection(("127.0.0.1", port), 5) as plain:
        plain.sendall(b"GET /v1/containers HTTP/1.1\r\nHost: x\r\n\r\n")
        plain.settimeout(5)
        assert not plain.recv(100).startswith(b"HTTP/1.1 200")


def test_the_client_looks_at_the_server_too(site: Site, certificates: Path, port: int) -> None:
    refused(site, "cli.tls_failed", "ps", environment=environment(certificates, port, "client", "other"))


@pytest.mark.usefixtures("nothing_made")
def test_no_grant_reaches_over_tcp(site: Site, certificates: Path, port: int) -> None:
    """Not even for a certificate whose name is root's, or that of somebody who was given the grant."""
    there = environment(certificates, port, "client")
    for flags in (["-v", "/etc:/x"], ["--privileged"], ["--device", "/dev/null"], ["--cap-add", "SYS_ADMIN"],
                  ["--network", "host"]):  # fmt: skip
        done = site("--json", "run", "--rm", *flags, IMAGE, "true", environment=there)
        assert done.returncode == 125, (flags, done)
        assert b'"access.grant_missing"' in done.stderr, done.stderr
    done = site("run", "--rm", IMAGE, "echo", "plain", environment=there)
    assert done.stdout == b"plain\n"
    assert any(str(row["who"]).startswith("tls:client") for row in site.audit()), "its name is written down"
