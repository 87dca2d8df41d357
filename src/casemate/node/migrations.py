"""The database's schema, as the list of steps from an empty file; a step that was released is never changed.

``desired`` is what the user wants of a container, ``status`` what was last observed. Requests and resolved
specifications are kept as JSON, as the API and hostd have them; what is searched or changed has its own column.
Times are seconds since the epoch. Large columns stand last: what comes after them would be read through their pages.
"""

from __future__ import annotations

_FIRST = """
CREATE TABLE projects (name TEXT PRIMARY KEY, created_at REAL NOT NULL) STRICT;
INSERT INTO projects VALUES ('default', 0);

CREATE TABLE pods (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES projects (name),
    name TEXT NOT NULL,
    created_at REAL NOT NULL,
    implicit INTEGER NOT NULL,
    address INTEGER,
    first_id INTEGER NOT NULL DEFAULT 0,
    made INTEGER NOT NULL DEFAULT 0,
    spec BLOB NOT NULL,
    request BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX pods_name ON pods (project, name);
CREATE UNIQUE INDEX pods_address ON pods (address) WHERE address IS NOT NULL;

CREATE TABLE ports (
    pod TEXT NOT NULL REFERENCES pods (id) ON DELETE CASCADE,
    protocol TEXT NOT NULL,
    host_address TEXT NOT NULL,
    host_port INTEGER NOT NULL,
    PRIMARY KEY (protocol, host_port, host_address, pod)
) STRICT, WITHOUT ROWID;
CREATE INDEX ports_pod ON ports (pod);

CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL REFERENCES projects (name),
    name TEXT NOT NULL,
    pod TEXT NOT NULL REFERENCES pods (id),
    created_at REAL NOT NULL,
    image TEXT NOT NULL,
    image_digest TEXT NOT NULL,
    command TEXT NOT NULL,
    labels BLOB NOT NULL,
    restart_name TEXT NOT NULL,
    restart_maximum INTEGER NOT NULL,
    auto_remove INTEGER NOT NULL,
    stop_signal INTEGER NOT NULL,
    stop_timeout INTEGER NOT NULL,
    admission BLOB NOT NULL,
    warnings BLOB NOT NULL,
    desired TEXT NOT NULL,
    status TEXT NOT NULL,
    made INTEGER NOT NULL DEFAULT 0,
    pid INTEGER NOT NULL DEFAULT 0,
    conmon_pid INTEGER NOT NULL DEFAULT 0,
    intent_at REAL NOT NULL DEFAULT 0,
    started_at REAL NOT NULL DEFAULT 0,
    finished_at REAL NOT NULL DEFAULT 0,
    exit_code INTEGER,
    oom_killed INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    restarts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    restart_at REAL NOT NULL DEFAULT 0,
    request BLOB NOT NULL,
    spec BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX containers_name ON containers (project, name);
-- Covers `ps`: a row with its request and specification fills a page, so a list would read the whole table.
CREATE INDEX containers_listed ON containers (
    project, created_at, id, name, pod, image, image_digest, command, status, started_at, finished_at, exit_code,
    labels, restarts
);
CREATE INDEX containers_pod ON containers (pod);
CREATE INDEX containers_image ON containers (image_digest);

CREATE TABLE container_volumes (
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    project TEXT NOT NULL,
    volume TEXT NOT NULL,
    PRIMARY KEY (container, volume)
) STRICT, WITHOUT ROWID;
CREATE INDEX container_volumes_volume ON container_volumes (project, volume);

CREATE TABLE volumes (
    project TEXT NOT NULL REFERENCES projects (name),
    name TEXT NOT NULL,
    created_at REAL NOT NULL,
    anonymous INTEGER NOT NULL,
    labels BLOB NOT NULL,
    made INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    manifest_digest TEXT PRIMARY KEY,
    config_digest TEXT NOT NULL,
    created_at REAL NOT NULL,
    record BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX images_config ON images (config_digest);
CREATE TABLE image_names (
    name TEXT PRIMARY KEY,
    manifest_digest TEXT NOT NULL REFERENCES images (manifest_digest) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX image_names_digest ON image_names (manifest_digest);
CREATE TABLE layers (
    hex TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL,
    squashfs_bytes INTEGER NOT NULL,
    adopted INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE execs (
    id TEXT PRIMARY KEY,
    container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    request BLOB NOT NULL,
    process BLOB NOT NULL,
    created_at REAL NOT NULL,
    status TEXT NOT NULL,
    exit_code INTEGER,
    pid INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX execs_container ON execs (container);

CREATE TABLE journal (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    facts BLOB NOT NULL,
    step TEXT NOT NULL
) STRICT;
CREATE INDEX journal_subject ON journal (subject);

CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    finished_at REAL NOT NULL,
    target TEXT NOT NULL,
    result BLOB NOT NULL,
    problem BLOB
) STRICT;

CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    row BLOB NOT NULL
) STRICT;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    row BLOB NOT NULL,
    chain TEXT NOT NULL
) STRICT;

CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""

#: What `ps` shows of a pod, beside its name, without reading (and decoding) the pods' specifications: half its time.
_PODS_LISTED = """
ALTER TABLE pods ADD COLUMN level TEXT GENERATED ALWAYS AS (json_extract(CAST(spec AS TEXT), '$.level')) VIRTUAL;
ALTER TABLE pods ADD COLUMN published TEXT
    GENERATED ALWAYS AS (json_extract(CAST(spec AS TEXT), '$.network.ports')) VIRTUAL;
CREATE INDEX pods_listed ON pods (project, id, name, level, published, address);
"""

#: Policy: documents, the numbers of identities, quarantines, referrals, and the history of walls, which only grows.
_POLICY = """
CREATE TABLE policy_documents (
    key TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    project TEXT NOT NULL,
    name TEXT NOT NULL,
    rules INTEGER NOT NULL,
    walls INTEGER NOT NULL,
    applied_at REAL NOT NULL,
    applied_by TEXT NOT NULL,
    document BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE policy_numbers (number INTEGER PRIMARY KEY, identity BLOB NOT NULL) STRICT;
CREATE TABLE quarantines (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    workload TEXT NOT NULL,
    since REAL NOT NULL,
    until REAL NOT NULL,
    who TEXT NOT NULL,
    cause TEXT NOT NULL,
    reason TEXT NOT NULL,
    released_at REAL NOT NULL DEFAULT 0,
    released_by TEXT NOT NULL DEFAULT '',
    release_reason TEXT NOT NULL DEFAULT '',
    allow BLOB NOT NULL,
    before BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX quarantines_held ON quarantines (workload) WHERE released_at=0;
CREATE TABLE referrals (number INTEGER PRIMARY KEY, row BLOB NOT NULL) STRICT;
CREATE TABLE referral_answers (key TEXT PRIMARY KEY, until REAL NOT NULL, row BLOB NOT NULL) STRICT;
CREATE TABLE wall_history (
    number INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    at_text TEXT NOT NULL,
    kind TEXT NOT NULL,
    wall TEXT NOT NULL,
    workload TEXT NOT NULL,
    member TEXT NOT NULL,
    peer TEXT NOT NULL,
    who TEXT NOT NULL,
    reason TEXT NOT NULL,
    chain TEXT NOT NULL
) STRICT;
"""

#: Documents of the trust policy; and which repositories an image was pulled from, since a name can be given by anybody.
_TRUST = """
CREATE TABLE trust_policies (
    name TEXT PRIMARY KEY,
    applied_at REAL NOT NULL,
    who TEXT NOT NULL,
    document BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE image_origins (
    manifest_digest TEXT NOT NULL REFERENCES images (manifest_digest) ON DELETE CASCADE,
    repository TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (manifest_digest, repository)
) STRICT, WITHOUT ROWID;
"""

#: Publishers of signed metadata that are followed (JSON of node.freshness.Source).
_PUBLISHERS = """
CREATE TABLE trust_sources (name TEXT PRIMARY KEY, row BLOB NOT NULL) STRICT, WITHOUT ROWID;
"""

#: What a publisher showed may have megabytes; it is read only when a tag of its is resolved.
_PUBLISHERS_SHOWN = """
CREATE TABLE trust_shown (
    name TEXT PRIMARY KEY REFERENCES trust_sources (name) ON DELETE CASCADE,
    shown BLOB NOT NULL
) STRICT;
"""

#: What selectors of projects see, and who made each.
_PROJECTS = """
ALTER TABLE projects ADD COLUMN created_by TEXT NOT NULL DEFAULT '';
ALTER TABLE projects ADD COLUMN labels BLOB NOT NULL DEFAULT x'7b7d';
"""

#: Addresses that pods were told under names of rules; *until* by the clock of that boot of the host.
_NAMED = """
CREATE TABLE named_addresses (
    viewer TEXT NOT NULL,
    address TEXT NOT NULL,
    pattern TEXT NOT NULL,
    until REAL NOT NULL,
    boot TEXT NOT NULL,
    PRIMARY KEY (viewer, address, pattern)
) STRICT, WITHOUT ROWID;
"""

#: Decided referrals, many in one row (node.policy.referral_packs); *projects* are those of their ends, between spaces.
_PACKED = """
CREATE TABLE referral_packs (last INTEGER PRIMARY KEY, projects TEXT NOT NULL, pack BLOB NOT NULL) STRICT;
"""

MIGRATIONS: tuple[str, ...] = (
    _FIRST, _PODS_LISTED, _POLICY, _TRUST, _PUBLISHERS, _PUBLISHERS_SHOWN, _PROJECTS, _NAMED, _PACKED,
)  # fmt: skip
