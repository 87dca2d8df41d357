"""``trust init|show|delegate|rotate|publish|revoke|countersign``, ``trust key add``: metadata that say what a tag is.

All of it happens in a folder on this side, with keys on this side; any web server, or the folder, shows it to hosts.
"""

from __future__ import annotations

from casemate.cli.commands.images import credentials
from casemate.cli.commands.signatures import KEY_FLAGS, PLAIN
from casemate.cli.fail import bad_value, usage
from casemate.cli.flags import Arguments, Command, value, values
from casemate.cli.show.plain import clean
from casemate.cli.show.table import table
from casemate.cli.wire.client import object_of, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.cli.context import Context
    from casemate.trust.freshness.publisher import Publisher
    from casemate.trust.freshness.roles import Change
    from casemate.trust.keys.private import SigningKey

MAX_PEM_BYTES = 16 << 10


def init(arguments: Arguments, context: Context) -> int:
    from casemate.trust.freshness.roles import RoleKeys

    keys = _keys(arguments)
    own = tuple(key.public_pem for key in keys)

    def role(name: str) -> RoleKeys:
        given = tuple(_public(path) for path in arguments.texts(name)) or own
        if not given:
            raise usage(
                f"role {name} has no key", f"Give --{name} FILE (public), or --key for all roles.", "trust init"
            )
        return RoleKeys(given, _number(arguments, f"{name}-threshold", 1, len(given)))

    online = role("online")
    roles = {"root": role("root"), "targets": role("targets"), "snapshot": online, "timestamp": online}
    return _change(arguments, context, keys, lambda publisher: publisher.create(roles))


def _keys(arguments: Arguments) -> list[SigningKey]:
    from casemate.cli.signing import open_key

    return [open_key(text, arguments) for text in arguments.texts("key")]


def _public(path: str) -> str:
    from casemate.cli.signing import read_file

    return read_file(path, MAX_PEM_BYTES).decode("utf-8", "replace")


def _number(arguments: Arguments, name: str, default: int, most: int) -> int:
    from casemate.cli.asked.quantities import whole

    text = arguments.text(name)
    return default if text is None else whole(f"--{name}", text, 1, most)


def _lifetimes(arguments: Arguments) -> object:
    from casemate.trust.freshness.roles import Lifetimes

    default = Lifetimes()
    return Lifetimes(
        *(_number(arguments, f"{name}-days", getattr(default, name), 3650)
          for name in ("root", "targets", "snapshot", "timestamp"))
    )  # fmt: skip


def _change(arguments: Arguments, context: Context, keys: list[SigningKey], work: Callable[[Publisher], Change]) -> int:
    """Do *work* on the folder, and tell what was published and what waits for whom."""
    from datetime import UTC, datetime

    from casemate.trust.freshness import apply
    from casemate.trust.freshness.publisher import Publisher
    from casemate.trust.freshness.roles import Lifetimes

    lifetimes = _lifetimes(arguments)
    assert isinstance(lifetimes, Lifetimes)
    with apply.locked(arguments.words[0]) as folder:
        change = work(Publisher(apply.read(folder), keys, datetime.now(UTC), lifetimes))
        apply.write(folder, change)
    if context.json:
        context.answer({"published": list(change.published), "waiting": change.waiting})
    else:
        context.write("".join(f"published {name}\n" for name in change.published))
        context.write("".join(f"waits: {role}: {why}\n" for role, why in change.waiting.items()))
        if not change.published:
            context.write(
                "nothing was published yet; `casemate trust countersign` with the keys that are missing does\n"
            )
    return 0


def show(arguments: Arguments, context: Context) -> int:
    from datetime import UTC, datetime

    import msgspec

    from casemate.trust.freshness import apply
    from casemate.trust.freshness.publisher import Publisher

    with apply.locked(arguments.words[0]) as folder:
        rows = Publisher(apply.read(folder), [], datetime.now(UTC)).rows()
    if context.json:
        context.answer(msgspec.to_builtins(rows))
        return 0
    lines: list[dict[str, object]] = [
        {"R": row.name + (" (staged)" if row.staged else ""), "V": row.version, "E": row.expires[:16],
         "K": f"{row.threshold} of " + " ".join(key[:12] for key in row.keys), "P": " ".join(row.prefixes)}
        for row in rows
    ]  # fmt: skip
    columns = (("R", "ROLE"), ("V", "VERSION"), ("E", "EXPIRES"), ("K", "KEYS"), ("P", "REPOSITORIES"))
    context.write(table(columns, lines))
    tags: list[dict[str, object]] = [
        {"T": name, "D": digest, "R": row.name} for row in rows for name, digest in row.targets
    ]
    if tags:
        context.write("\n" + table((("T", "TAG"), ("D", "DIGEST"), ("R", "ROLE")), tags))
    return 0


def key_add(arguments: Arguments, context: Context) -> int:
    _, role, path = arguments.words
    threshold = _number(arguments, "threshold", 0, 64) or None
    pem = _public(path)
    return _change(arguments, context, _keys(arguments), lambda publisher: publisher.add_key(role, pem, threshold))


def delegate(arguments: Arguments, context: Context) -> int:
    from casemate.spec.reference import parse_prefix
    from casemate.trust.freshness.roles import RoleKeys

    _, role, *paths = arguments.words
    keys = RoleKeys(tuple(_public(path) for path in paths), _number(arguments, "threshold", 1, len(paths)))
    prefixes = [parse_prefix(text) for text in arguments.texts("repository")]
    return _change(arguments, context, _keys(arguments), lambda publisher: publisher.delegate(role, prefixes, keys))


def _keyid(text: str) -> str:
    """A key's id in metadata: *text* itself, or that of the public key in the file *text*."""
    if len(text) <= 64 and all(char in "0123456789abcdef" for char in text):
        return text
    from casemate.trust.freshness.roles import tuf_key

    return str(tuf_key(_public(text)).keyid)


def rotate(arguments: Arguments, context: Context) -> int:
    _, role, old, new = arguments.words
    keyid, pem = _keyid(old), _public(new)
    return _change(arguments, context, _keys(arguments), lambda publisher: publisher.rotate(role, keyid, pem))


def publish(arguments: Arguments, context: Context) -> int:
    if len(arguments.words) == 1:
        return _change(arguments, context, _keys(arguments), lambda publisher: publisher.renew())
    target = _target(arguments.words[1])
    digest, size = arguments.text("digest"), 0
    if digest is None:
        request: dict[str, object] = {"reference": arguments.words[1]}
        if arguments.on("plain-http"):
            request["plain_http"] = True
        auth = credentials(arguments.words[1])
        if auth is not None:
            request["auth"] = auth
        image = object_of(context.client.post("/v1/trust/resolve", request))
        digest, found = text_of(image, "digest"), image.get("size_bytes")
        size = found if isinstance(found, int) else 0
    role, keys = arguments.text("role") or "", _keys(arguments)
    if not context.json:
        context.write(f"{clean(target)} is {clean(digest)}\n")
    return _change(arguments, context, keys, lambda publisher: publisher.publish(target, digest, size, role))


def _target(text: str) -> str:
    from casemate.spec.reference import parse_reference

    reference = parse_reference(text)
    if reference.digest is not None or reference.tag is None:
        raise bad_value("IMAGE", text, "with a tag and without a digest: what is published is what a tag means")
    return str(reference)


def revoke(arguments: Arguments, context: Context) -> int:
    role, old = arguments.text("role") or "", arguments.text("public-key")
    if (old is None) == (len(arguments.words) == 1):
        raise usage("either an IMAGE, or --public-key and --role", path="trust revoke")
    if old is None:
        target = _target(arguments.words[1])
        return _change(arguments, context, _keys(arguments), lambda publisher: publisher.unpublish(target, role))
    if not role:
        raise usage("--public-key wants the --role that it goes from", path="trust revoke")
    keyid, threshold = _keyid(old), _number(arguments, "threshold", 0, 64) or None
    return _change(arguments, context, _keys(arguments), lambda publisher: publisher.revoke_key(role, keyid, threshold))


def countersign(arguments: Arguments, context: Context) -> int:
    return _change(arguments, context, _keys(arguments), lambda publisher: publisher.countersign())


_KEYS = (
    values("key", "FILE|pkcs11:...", "A private key that signs; again for each. One that may not sign is no fault", "k",
           completes="file"),
    *KEY_FLAGS[1:],
)  # fmt: skip
_DAYS = (
    value("root-days", "N", "Days until root expires (365)", group="Lifetimes"),
    value("targets-days", "N", "Days until targets and teams expire (90)", group="Lifetimes"),
    value("snapshot-days", "N", "Days until the snapshot expires (7)", group="Lifetimes"),
    value(
        "timestamp-days", "N", "Days until the timestamp expires: how long a freeze goes unseen (1)", group="Lifetimes"
    ),
)
_THRESHOLD = value("threshold", "N", "How many of the role's keys must sign")
_ROLE = value("role", "ROLE", "The role that says it; else the one that it was delegated to")
INIT = Command(
    "[OPTIONS] FOLDER", init,
    (*_KEYS, values("root", "FILE", "A public key of root; again for each", completes="file"),
     value("root-threshold", "N", "How many of root's keys must sign (1)"),
     values("targets", "FILE", "A public key of targets", completes="file"),
     value("targets-threshold", "N", "How many of targets' keys must sign (1)"),
     values("online", "FILE", "A public key of snapshot and timestamp, which a machine signs with each day",
            completes="file"),
     value("online-threshold", "N", "How many of those must sign (1)"), *_DAYS), 1, 1, (),
    "A role without a key of its own takes those of --key. Root and targets belong on tokens, the online key on the\n"
    "machine that publishes. Hosts are given root.json once, out of band.",
    ("casemate trust init --root a.pub --root b.pub --root-threshold 2 --key a.key --key b.key site",),
)  # fmt: skip
SHOW = Command("FOLDER", show, (), 1, 1, (), "Roles, keys, thresholds, ends and published tags; what waits is marked.")
KEY_ADD = Command(
    "[OPTIONS] FOLDER ROLE PUBLIC-KEY", key_add, (*_KEYS, _THRESHOLD, *_DAYS), 3, 3, (),
    "ROLE is root, targets, snapshot, timestamp or a team. Root signs for the first four, targets for teams.",
    ("casemate trust key add --key root.key site targets second.pub --threshold 2",),
)  # fmt: skip
DELEGATE = Command(
    "[OPTIONS] FOLDER TEAM PUBLIC-KEY [PUBLIC-KEY...]", delegate,
    (*_KEYS, values("repository", "PREFIX", "Repositories that the team speaks for: PREFIX and what is below it"),
     _THRESHOLD, *_DAYS), 3, None, (), "A team's name is given once; nobody else speaks for what was delegated.",
    ("casemate trust delegate --key targets.key --key online.key --repository registry.example/web site web web.pub",),
)  # fmt: skip
ROTATE = Command(
    "[OPTIONS] FOLDER ROLE OLD NEW", rotate, (*_KEYS, *_DAYS), 4, 4, (),
    "OLD is a public key's file or id, NEW a public key's file. A new root is signed by the old keys and by its own.",
    ("casemate trust rotate --key root.key --key new.key site targets old.pub new.pub",),
)  # fmt: skip
PUBLISH = Command(
    "[OPTIONS] FOLDER [IMAGE]", publish,
    (*_KEYS, value("digest", "DIGEST", "What the tag means; else what the registry has under it now"), _ROLE, PLAIN,
     *_DAYS),
    1, 2, ("image",), "Without IMAGE a new timestamp is made: a machine with the online key does that every few hours.",
    ("casemate trust publish --key web.key --key online.key site registry.example/web/shop:3",
     "casemate trust publish --key online.key site"),
)  # fmt: skip
REVOKE = Command(
    "[OPTIONS] FOLDER [IMAGE]", revoke,
    (*_KEYS, _ROLE, value("public-key", "FILE|ID", "Take this key from --role instead of a tag", completes="file"),
     _THRESHOLD, *_DAYS), 1, 2, ("image",), "",
    ("casemate trust revoke --key web.key --key online.key site registry.example/web/shop:2",
     "casemate trust revoke --key targets.key --key online.key --role web --public-key lost.pub site"),
)  # fmt: skip
COUNTERSIGN = Command(
    "[OPTIONS] FOLDER", countersign, (*_KEYS, *_DAYS), 1, 1, (),
    "Signs what waits below FOLDER/staged with the keys that are here, and publishes what is complete.",
    ("casemate trust countersign --key 'pkcs11:token=b;object=root' site",),
)  # fmt: skip
