"""What people type wrong or on purpose: each is refused with a code and a remedy, and leaves nothing."""

from __future__ import annotations

import pytest
from tests.integration.system.site import IMAGE, Site, refused

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_made")]


@pytest.mark.parametrize(
    ("code", "argv"),
    [
        ("cli.usage", ["--no-such-flag", IMAGE, "true"]),
        ("cli.usage", ["-m", "lots", IMAGE, "true"]),
        ("cli.usage", ["--cpus", "-1", IMAGE, "true"]),
        ("cli.usage", ["--cpus", "nan", IMAGE, "true"]),
        ("cli.usage", ["--pids-limit", "many", IMAGE, "true"]),
        ("cli.usage", ["-p", "99999:1", IMAGE, "true"]),
        ("cli.usage", ["-p", "1-5:1-3", IMAGE, "true"]),
        ("cli.usage", ["-v", "relative:nor/absolute", IMAGE, "true"]),
        ("cli.usage", ["--mount", "type=magic,target=/x", IMAGE, "true"]),
        ("cli.usage", ["--ulimit", "nofile", IMAGE, "true"]),
        ("cli.usage", ["--restart", "sometimes", IMAGE, "true"]),
        ("cli.usage", ["-e", "=value", IMAGE, "true"]),
        ("cli.usage", ["-e", "A=\udcff\n=", "-e", "", IMAGE, "true"]),
        ("cli.usage", ["--isolation", "bubblewrap", IMAGE, "true"]),
        ("cli.usage", ["--platform", "a/b/c/d/e", IMAGE, "true"]),
        ("cli.usage", ["--network", "bridge0/../..", IMAGE, "true"]),
        ("cli.usage", []),
    ],
)
def test_malformed_flags(site: Site, code: str, argv: list[str]) -> None:
    refused(site, code, "run", *argv)
