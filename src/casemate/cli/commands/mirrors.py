"""``feed sign``: the manifest of a folder that shows feeds, signed on this side for hosts that name its key."""

from __future__ import annotations

from casemate.cli.commands.signatures import KEY_FLAGS
from casemate.cli.fail import file_trouble, usage
from casemate.cli.flags import Arguments, Command, switch, value, values
from casemate.cli.show.plain import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from casemate.cli.context import Context
    from casemate.trust.feed.manifest import Manifest, Offered
    from casemate.trust.keys.private import SigningKey

LIST, MANIFEST = "feeds.json", "manifest.json"
#: A manifest that nobody renews ends soon: whoever holds the newer one back is noticed.
DAYS = 7
MAX_DAYS = 366


def sign(arguments: Arguments, context: Context) -> int:
    from pathlib import Path

    from casemate.cli.signing import open_key
    from casemate.trust.feed.manifest import countersign, parse_manifest, sign_manifest

    folder = Path(arguments.words[0])
    if not arguments.texts("key"):
        raise usage("no key to sign with", "Give --key FILE or --key pkcs11:...", "feed sign")
    keys: list[SigningKey] = [open_key(text, arguments) for text in arguments.texts("key")]
    before = _read(folder / MANIFEST, optional=True)
    adds = arguments.on("add")
    data = countersign(before, keys) if adds else sign_manifest(_next(folder, before, arguments), keys)
    _replace(folder / MANIFEST, data)
    made = parse_manifest(data)
    if context.json:
        context.answer({"version": made.version, "expires": made.expires, "feeds": [row.name for row in made.feeds]})
    else:
        context.write(
            f"{clean(str(folder / MANIFEST))}: version {made.version}, {len(made.feeds)} feeds, until {made.expires}\n"
        )
    return 0


def _next(folder: Path, before: bytes, arguments: Arguments) -> Manifest:
    """The manifest of the list in *folder*: each file's digest, the version after the one that stands there."""
    from datetime import UTC, datetime, timedelta

    import msgspec

    from casemate.cli.asked.quantities import whole
    from casemate.trust.feed.manifest import MAX_VERSION, Manifest, parse_manifest, read_payload

    version = parse_manifest(before).version + 1 if before else 1
    if (text := arguments.text("version")) is not None:
        version = whole("--version", text, version, MAX_VERSION)
    text = arguments.text("days")
    days = DAYS if text is None else whole("--days", text, 0, MAX_DAYS)
    try:
        listed = msgspec.json.decode(_read(folder / LIST))
        rows = [{"sha256": "0" * 64, **row} for row in listed["feeds"]]
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise file_trouble(f"{folder / LIST} is no list of feeds: {error}") from None
    feeds = tuple(_hashed(folder, row) for row in read_payload(msgspec.json.encode({"feeds": rows})).feeds)
    return Manifest(feeds, version, (datetime.now(UTC).date() + timedelta(days)).isoformat())


def _hashed(folder: Path, row: Offered) -> Offered:
    import hashlib

    import msgspec

    try:
        with (folder / row.file).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise file_trouble(f"{folder / row.file}: {error.strerror}") from None
    return msgspec.structs.replace(row, sha256=digest)


def _read(path: Path, *, optional: bool = False) -> bytes:
    from casemate.trust.feed.manifest import MAX_MANIFEST_BYTES

    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        if optional:
            return b""
        raise file_trouble(f"{path} is not there") from None
    except OSError as error:
        raise file_trouble(f"{path}: {error.strerror}") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise file_trouble(f"{path} has more than {MAX_MANIFEST_BYTES} bytes")
    return data


def _replace(path: Path, data: bytes) -> None:
    """The new file or the old one, whenever the power goes."""
    import os

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise file_trouble(f"{path}: {error.strerror}") from None


SIGN = Command(
    "[OPTIONS] FOLDER", sign,
    (
        values("key", "KEY", "A private key (PEM), or pkcs11:...; again for each", completes="file"),
        *KEY_FLAGS[1:],
        value("days", "N", f"Until when hosts take it: so many days from today ({DAYS})"),
        value("version", "N", "Its number (one more than that of the manifest that stands there)"),
        switch("add", "Add signatures to the manifest that stands there, and change nothing else"),
    ),
    1, 1, ("file",),
    f"FOLDER/{LIST} lists the feeds: {{\"feeds\": [{{\"name\": ..., \"kind\": ..., \"file\": ...}}]}}, with \"date\"\n"
    f"where the kind does not say it. Each file's digest is taken, and FOLDER/{MANIFEST} written and signed. Renew it\n"
    "before its last day.",
    ("casemate feed sign --key feeds.key /srv/feeds", "casemate feed sign --add --key 'pkcs11:token=b;object=feeds' ."),
)  # fmt: skip
