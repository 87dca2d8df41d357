"""The names of all commands: which module holds each, its line in help, and under which heading it stands.

Only this is loaded for ``casemate --help``; a command's flags are loaded with its module. A test holds that each row
leads to a :class:`~casemate.cli.flags.Command`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.flags import Command

#: path, module below casemate.cli.commands, attribute, summary, heading.
ROWS: tuple[tuple[str, str, str, str, str], ...] = (
    ("run", "run", "RUN", "Create and start a container from an image", "Common"),
    ("exec", "exec", "EXEC", "Run a command in a running container", "Common"),
    ("ps", "listing", "PS", "List containers", "Common"),
    ("logs", "logs", "LOGS", "Show what a container wrote", "Common"),
    ("pull", "images", "PULL", "Fetch an image from a registry", "Common"),
    ("push", "images", "PUSH", "Send an image to a registry", "Common"),
    ("images", "images", "LS", "List images", "Common"),
    ("create", "run", "CREATE", "Create a container without starting it", "Containers"),
    ("start", "attach", "START", "Start containers", "Containers"),
    ("stop", "lifecycle", "STOP", "Stop containers: signal, wait, kill", "Containers"),
    ("restart", "lifecycle", "RESTART", "Stop and start containers", "Containers"),
    ("kill", "lifecycle", "KILL", "Send a signal to containers (KILL)", "Containers"),
    ("rm", "lifecycle", "RM", "Remove containers", "Containers"),
    ("pause", "lifecycle", "PAUSE", "Freeze all processes of containers", "Containers"),
    ("unpause", "lifecycle", "UNPAUSE", "Let paused containers go on", "Containers"),
    ("wait", "lifecycle", "WAIT", "Wait until containers end, print their exit codes", "Containers"),
    ("rename", "lifecycle", "RENAME", "Give a container another name", "Containers"),
    ("update", "update", "UPDATE", "Change limits and restart policy of containers that run", "Containers"),
    ("attach", "attach", "ATTACH", "Connect this terminal to a running container", "Containers"),
    ("cp", "copy", "CP", "Copy files between a container and this machine", "Containers"),
    ("inspect", "inspect", "INSPECT", "Show everything about objects", "Containers"),
    ("stats", "stats", "STATS", "Show what containers use, live", "Containers"),
    ("top", "listing", "TOP", "List the processes of a container", "Containers"),
    ("diff", "listing", "DIFF", "List what a container changed in its file system", "Containers"),
    ("port", "listing", "PORT", "List published ports", "Containers"),
    ("export", "copy", "EXPORT", "Write a container's file system as a tar archive", "Containers"),
    ("events", "events", "EVENTS", "Show what happens, as it happens", "Containers"),
    ("pod create", "pods", "CREATE", "Create a pod: one sandbox for several containers", "Pods"),
    ("pod ps", "pods", "PS", "List pods", "Pods"),
    ("pod rm", "pods", "RM", "Remove pods", "Pods"),
    ("pod start", "pods", "START", "Start all containers of pods", "Pods"),
    ("pod stop", "pods", "STOP", "Stop all containers of pods", "Pods"),
    ("pod inspect", "inspect", "POD", "Show everything about pods", "Pods"),
    ("image ls", "images", "LS", "List images", "Images"),
    ("image pull", "images", "PULL", "Fetch an image from a registry", "Images"),
    ("image push", "images", "PUSH", "Send an image to a registry", "Images"),
    ("image rm", "images", "RM", "Remove images", "Images"),
    ("image tag", "images", "TAG", "Give an image a further name", "Images"),
    ("image history", "images", "HISTORY", "Show the steps that made an image", "Images"),
    ("image inspect", "inspect", "IMAGE", "Show everything about images", "Images"),
    ("image prune", "images", "PRUNE", "Remove images that nothing uses", "Images"),
    ("image import", "archives", "IMPORT", "Make an image out of an archive or a root file system", "Images"),
    ("image export", "archives", "EXPORT", "Write an image as an archive", "Images"),
    ("image load", "archives", "LOAD", "Load images from an archive (docker load)", "Images"),
    ("image save", "archives", "SAVE", "Write an image as an archive (docker save)", "Images"),
    ("image build-debian", "archives", "BUILD_DEBIAN", "Make an image out of Debian packages", "Images"),
    ("image scan", "scan", "SCAN", "Show what is known to be wrong in an image, and what to upgrade", "Images"),
    ("volume create", "volumes", "CREATE", "Create a volume", "Volumes"),
    ("volume ls", "volumes", "LS", "List volumes", "Volumes"),
    ("volume rm", "volumes", "RM", "Remove volumes", "Volumes"),
    ("volume inspect", "inspect", "VOLUME", "Show everything about volumes", "Volumes"),
    ("volume prune", "volumes", "PRUNE", "Remove volumes that nothing uses", "Volumes"),
    ("project create", "projects", "CREATE", "Make a project", "Policy"),
    ("project ls", "projects", "LS", "List projects and what is in them", "Policy"),
    ("project label", "projects", "LABEL", "Give a project other labels", "Policy"),
    ("project rm", "projects", "RM", "Remove empty projects", "Policy"),
    ("policy apply", "policy", "APPLY", "Put policy documents in force", "Policy"),
    ("policy diff", "policy", "DIFF", "Show what applying documents would change", "Policy"),
    ("policy ls", "policy", "LS", "List policy documents", "Policy"),
    ("policy show", "policy", "SHOW", "Print policy documents", "Policy"),
    ("policy status", "policy", "STATUS", "Show what holds, what waits, and what was counted", "Policy"),
    ("policy rm", "policy", "RM", "Take policy documents out of force", "Policy"),
    ("policy explain", "policy", "EXPLAIN", "Why a connection is allowed or denied", "Policy"),
    ("policy test", "policy", "TEST", "Check that connections have the verdicts that are expected", "Policy"),
    ("policy simulate", "policy", "SIMULATE", "Replay recorded flows against other documents", "Policy"),
    ("policy suggest", "policy", "SUGGEST", "Make the narrowest rules that admit the recorded flows", "Policy"),
    ("policy schema", "policy", "SCHEMA", "Print the JSON schema of policy documents", "Policy"),
    ("identity ls", "policy", "IDENTITIES", "List the identities that the firewall knows", "Policy"),
    ("referral ls", "referrals", "LS", "List connections that wait for a person's answer", "Policy"),
    ("referral allow", "referrals", "ALLOW", "Let waiting connections pass", "Policy"),
    ("referral deny", "referrals", "DENY", "Refuse waiting connections", "Policy"),
    ("referral forget", "referrals", "FORGET", "Forget remembered answers", "Policy"),
    ("referral watch", "referrals", "WATCH", "Follow what is asked and answered", "Policy"),
    ("quarantine", "referrals", "QUARANTINE", "Cut workloads off, at once", "Policy"),
    ("quarantine ls", "referrals", "HELD", "List quarantines", "Policy"),
    ("quarantine release", "referrals", "RELEASE", "Let quarantined workloads talk again", "Policy"),
    ("wall ls", "walls", "LS", "List conflict-of-interest walls", "Policy"),
    ("wall check", "walls", "CHECK", "Prove that the rules leave no path across walls, or name each", "Policy"),
    ("wall report", "walls", "REPORT", "Print the evidence of walls, and check its chain", "Policy"),
    ("wall release", "walls", "RELEASE", "Let a workload begin anew behind a wall", "Policy"),
    ("flows", "flows", "FLOWS", "Show who talks to whom, seen from outside", "Network"),
    ("hold ls", "holds", "LS", "List kept ports, and the connections that are held for them", "Network"),
    ("flows map", "flows", "MAP", "Draw the service map", "Network"),
    ("trust why", "trust", "WHY", "Show why a container or an image may run, step by step", "Trust"),
    ("trust policy apply", "trust", "APPLY", "Put documents of the trust policy in force", "Trust"),
    ("trust policy ls", "trust", "LS", "List the documents of the trust policy", "Trust"),
    ("trust policy show", "trust", "SHOW", "Show a document of the trust policy", "Trust"),
    ("trust policy rm", "trust", "RM", "Remove documents of the trust policy", "Trust"),
    ("trust policy test", "trust", "TEST", "Run cases against a trust policy", "Trust"),
    ("trust policy dry-run", "trust", "DRY_RUN", "Show what a trust policy would change among what runs", "Trust"),
    ("feed import", "feeds", "IMPORT", "Import a list of known vulnerabilities", "Trust"),
    ("feed ls", "feeds", "LS", "List feeds and their age", "Trust"),
    ("feed verify", "feeds", "VERIFY", "Check the feeds: whole, sound, young enough", "Trust"),
    ("feed update", "feeds", "UPDATE", "Fetch newer feeds from a mirror, by digest", "Trust"),
    ("feed rm", "feeds", "RM", "Remove feeds", "Trust"),
    ("feed sign", "mirrors", "SIGN", "Sign the manifest of a folder of feeds, for hosts that fetch from it", "Trust"),
    ("trust verify", "signatures", "VERIFY", "Check who signed an image", "Trust"),
    ("trust sign", "signatures", "SIGN", "Sign an image at its registry", "Trust"),
    ("trust attest", "signatures", "ATTEST", "Sign a statement about an image", "Trust"),
    ("trust key tokens", "signatures", "KEY_TOKENS", "List the keys on tokens", "Trust"),
    ("trust init", "publishers", "INIT", "Begin a folder of signed metadata: what each tag means", "Trust"),
    ("trust show", "publishers", "SHOW", "Show a folder's roles, keys and tags", "Trust"),
    ("trust publish", "publishers", "PUBLISH", "Sign which digest a tag means, or renew the timestamp", "Trust"),
    ("trust revoke", "publishers", "REVOKE", "Take back a tag, or a role's key", "Trust"),
    ("trust delegate", "publishers", "DELEGATE", "Let a team sign for its repositories", "Trust"),
    ("trust rotate", "publishers", "ROTATE", "Replace a role's key", "Trust"),
    ("trust countersign", "publishers", "COUNTERSIGN", "Add the signature that a change waits for", "Trust"),
    ("trust source add", "sources", "ADD", "Follow a publisher: tags mean what it signed", "Trust"),
    ("trust source ls", "sources", "LS", "List publishers that are followed", "Trust"),
    ("trust source refresh", "sources", "REFRESH", "Ask publishers now", "Trust"),
    ("trust source rm", "sources", "RM", "Follow publishers no more", "Trust"),
    ("trust tag", "sources", "TAG", "Show what a tag means by its publisher", "Trust"),
    ("trust key add", "publishers", "KEY_ADD", "Let one more key sign for a role", "Trust"),
    ("trust key new", "signatures", "KEY_NEW", "Make a key pair that signs", "Trust"),
    ("system info", "system", "INFO", "Describe the host and the daemons", "System"),
    ("system doctor", "system", "DOCTOR", "Check the host; name what a crash left behind", "System"),
    ("system df", "system", "DF", "Show what takes the space", "System"),
    ("system prune", "system", "PRUNE", "Remove what is unused or was left behind", "System"),
    ("system kernel install", "kernels", "INSTALL", "Prepare a guest kernel for micro-VMs", "System"),
    ("system kernel ls", "kernels", "LS", "List guest kernels", "System"),
    ("system kernel use", "kernels", "USE", "Choose the guest kernel of new micro-VMs", "System"),
    ("system kernel rm", "kernels", "RM", "Remove guest kernels", "System"),
    ("audit ls", "audit", "LS", "List the audit log", "System"),
    ("audit verify", "audit", "VERIFY", "Check the chain of the audit log", "System"),
    ("version", "version", "VERSION", "Show the versions of client and daemons", "System"),
    ("login", "login", "LOGIN", "Keep credentials for a registry", "System"),
    ("logout", "login", "LOGOUT", "Forget credentials for a registry", "System"),
    ("completion", "shell", "COMPLETION", "Print a completion script for bash, zsh or fish", "System"),
    ("help", "shell", "HELP", "Print help for a command", "System"),
)

#: What people type for the same: alias -> path.
ALIASES: dict[str, str] = {
    "rmi": "image rm", "tag": "image tag", "history": "image history", "import": "image import",
    "load": "image load", "save": "image save", "info": "system info",
    "image list": "image ls", "image remove": "image rm",
    "volume list": "volume ls", "volume remove": "volume rm",
    "pod ls": "pod ps", "pod list": "pod ps",
    "system events": "events", "list": "ps", "ls": "ps",
    "container ls": "ps", "container list": "ps", "container ps": "ps", "container remove": "rm",
    **{f"container {name}": name for name in (
        "run", "create", "start", "stop", "restart", "kill", "rm", "pause", "unpause", "wait", "rename", "update",
        "attach", "exec", "logs", "cp", "inspect", "stats", "top", "diff", "port", "export",
    )},
}  # fmt: skip

GROUPS: dict[str, str] = {
    "container": "Manage containers",
    "pod": "Manage pods",
    "image": "Manage images",
    "volume": "Manage volumes",
    "project": "Look after projects, the units of ownership and policy",
    "policy": "Say who may talk to whom",
    "identity": "Look at identities",
    "referral": "Answer connections that no rule decided",
    "wall": "Look after conflict-of-interest walls",
    "system": "Look after the host and the daemons",
    "audit": "Read the audit log",
    "trust": "Decide what may run: signatures, keys, publishers, policy",
    "trust key": "Keys that sign",
    "trust source": "Publishers whose word a tag's meaning is",
    "trust policy": "Say what may run, how strongly isolated, and what happens to what runs already",
    "feed": "Look after the lists of known vulnerabilities",
}


def paths() -> dict[str, tuple[str, str, str, str, str]]:
    """Every path, aliases too, with its row."""
    found = {row[0]: row for row in ROWS}
    for alias, path in ALIASES.items():
        found[alias] = found[path]
    return found


def find(argv: list[str]) -> tuple[str | None, list[str]]:
    """The path of the command that begins *argv*, or None; and the words after it."""
    known = paths()
    for count in (3, 2):
        words = " ".join(argv[:count])
        if len(argv) >= count and words in known:
            return words, argv[count:]
    if argv[0] in known and argv[0] not in GROUPS:
        return argv[0], argv[1:]
    return None, argv


def load(path: str) -> Command:
    """The command at *path*; its module is imported now."""
    _, module, attribute, _, _ = paths()[path]
    loaded = __import__(f"casemate.cli.commands.{module}", None, None, (attribute,))
    command: Command = getattr(loaded, attribute)
    return command
