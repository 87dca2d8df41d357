"""What looks like a secret that was left in a layer. Rules by path and by content; the secret itself is never kept."""

from __future__ import annotations

import re
from collections.abc import Iterator

from casemate.trust.packages.content import Content
from casemate.trust.packages.model import Leak

#: Configuration, keys and scripts are small; this keeps the search within the pull's budget.
MAX_SEARCHED_BYTES = 256 << 10
_MAX_LEAKS_PER_FILE = 20

#: Folders in which distributions put their own files: examples, test keys and documentation, no one's secret.
_SYSTEM = (
    "usr/share/", "usr/lib/", "usr/libexec/", "usr/include/", "usr/bin/", "usr/sbin/", "usr/lib64/", "lib/", "bin/",
    "sbin/", "lib64/", "boot/", "var/lib/dpkg/", "var/cache/", "usr/local/lib/python",
)  # fmt: skip
_LIBRARIES = (
    "/node_modules/",
    "/site-packages/",
    "/dist-packages/",
    "/gems/",
    "/vendor/",
    "/testdata/",
    "/__pycache__/",
)
_TEXT = (
    ".env", ".ini", ".cfg", ".conf", ".json", ".yaml", ".yml", ".toml", ".xml", ".properties", ".sh", ".py", ".js",
    ".ts", ".rb", ".php", ".pem", ".key", ".txt", ".tf", ".tfvars", ".config", ".bak", ".old", ".sql",
)  # fmt: skip

_PATHS = (
    ("ssh-private-key-file", re.compile(r"(?:\A|/)\.ssh/(?:id_(?:rsa|dsa|ecdsa|ed25519)|identity)\Z")),
    ("aws-credentials-file", re.compile(r"(?:\A|/)\.aws/credentials\Z")),
    ("docker-credentials-file", re.compile(r"(?:\A|/)(?:\.docker/config\.json|\.dockercfg)\Z")),
    ("git-credentials-file", re.compile(r"(?:\A|/)\.git-credentials\Z")),
    ("netrc-file", re.compile(r"(?:\A|/)[._]netrc\Z")),
    (
        "gcloud-credentials-file",
        re.compile(r"(?:\A|/)\.config/gcloud/(?:credentials\.db|application_default_credentials\.json)\Z"),
    ),
    ("kubeconfig-file", re.compile(r"(?:\A|/)\.kube/config\Z")),
    ("keystore-file", re.compile(r"\.(?:p12|pfx|jks|kdbx)\Z")),
)
# Asked about every file of a layer, so one look comes first.
_ANY_PATH = re.compile("|".join(pattern.pattern for _, pattern in _PATHS))
_CONTENTS = (
    # At least a line of base64 has to follow: the bare words stand in many programs.
    (
        "private-key",
        rb"-----BEGIN (?:RSA |EC |DSA |OPENSSH |ENCRYPTED )?PRIVATE KEY-----\s{1,8}"
        rb"(?:[A-Za-z-]{1,40}:[^\n]{0,200}\n\s{0,8}){0,4}[A-Za-z0-9+/=]{32}",
    ),
    ("aws-access-key", rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("github-token", rb"\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{80,90}\b"),
    ("gitlab-token", rb"\bglpat-[A-Za-z0-9_-]{20}\b"),
    ("slack-token", rb"\bxox[abprs]-[0-9A-Za-z-]{20,80}"),
    ("google-api-key", rb"\bAIza[0-9A-Za-z_-]{35}\b"),
    ("stripe-key", rb"\b[rs]k_live_[0-9A-Za-z]{24,99}\b"),
    ("npm-token", rb"\bnpm_[A-Za-z0-9]{36}\b|//[^\s/]{1,255}/:_authToken=[^\s$]{8}"),
    ("pypi-token", rb"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,200}"),
)  # fmt: skip
_ANY = re.compile(b"|".join(b"(?P<r%d>%s)" % (number, pattern) for number, (_, pattern) in enumerate(_CONTENTS)))
#: AWS's own documentation uses this key; it opens nothing.
_HARMLESS = (b"EXAMPLE",)


def by_path(path: str) -> Iterator[Leak]:
    """The rules that look at the name alone."""
    if not _ANY_PATH.search(path):
        return
    for rule, pattern in _PATHS:
        if pattern.search(path):
            yield Leak(path, rule)


def is_searched(path: str, size_bytes: int) -> bool:
    """Whether a file's content is worth a look."""
    if not 16 <= size_bytes <= MAX_SEARCHED_BYTES or path.startswith(_SYSTEM):
        return False
    if any(part in path for part in _LIBRARIES):
        return False
    base = path.rpartition("/")[2]
    return "." not in base or base.startswith(".") or base.endswith(_TEXT)


def by_content(path: str, content: Content) -> Iterator[Leak]:
    """The rules that look at the bytes; binaries (a NUL in the first KiB) are passed over."""
    data = content.whole()
    if b"\0" in data[:1024]:
        return
    for count, found in enumerate(_ANY.finditer(data)):
        if count >= _MAX_LEAKS_PER_FILE:
            return
        if not any(word in found[0] for word in _HARMLESS):
            assert found.lastgroup is not None  # every alternative is a named group
            yield Leak(path, _CONTENTS[int(found.lastgroup[1:])][0], data.count(b"\n", 0, found.start()) + 1)
