"""The one table of settings: from it come the TOML file, the environment, and the reference page.

A setting's name is ``section.key``; in the file it stands as ``key`` under ``[section]``, in the environment
as ``CASEMATE_SECTION_KEY``. Precedence: environment, file, default. Unknown names are refused. Reading the
file is ``host``'s work (:mod:`casemate.host.settings_file`); this module is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from casemate.spec.errors import InvalidArgument

Value = str | int | bool | tuple[str, ...]


class SettingInvalid(InvalidArgument):
    code = "settings.invalid"
    title = "A setting is not valid"
    remedy = "Correct /etc/casemate/casemate.toml; docs/reference/settings.md lists every name with its range."


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: *name* ``section.key``, *default* (its type is the setting's), *why* that default, *unit*, range."""

    name: str
    default: Value
    why: str
    unit: str = ""
    minimum: int | None = None
    maximum: int | None = None

    @property
    def environment(self) -> str:
        return "CASEMATE_" + self.name.replace(".", "_").upper()

    def check(self, value: object) -> Value:
        """*value* as this setting's type and within its range, or :class:`SettingInvalid`."""
        default = self.default
        if isinstance(default, tuple):
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise SettingInvalid(f"{self.name}: {value!r} is not a list of strings")
            return tuple(value)
        if type(value) is not type(default):
            raise SettingInvalid(f"{self.name}: {value!r} is not a {type(default).__name__}")
        if isinstance(value, int) and not isinstance(value, bool):
            low, high = self.minimum, self.maximum
            if (low is not None and value < low) or (high is not None and value > high):
                raise SettingInvalid(f"{self.name}: {value} is outside {low}..{high} {self.unit}".rstrip())
        assert isinstance(value, str | int)
        return value

    def parse(self, text: str) -> Value:
        """The value that *text* (from the environment) stands for; lists are separated by commas."""
        match self.default:
            case bool():
                if text.lower() not in ("true", "false", "1", "0"):
                    raise SettingInvalid(f"{self.environment}: {text!r} is neither true nor false")
                return text.lower() in ("true", "1")
            case int():
                try:
                    return self.check(int(text))
                except ValueError as error:
                    raise SettingInvalid(f"{self.environment}: {text!r} is not a whole number") from error
            case tuple():
                return tuple(part.strip() for part in text.split(",") if part.strip())
            case _:
                return text


SETTINGS: tuple[Setting, ...] = (
    Setting("paths.state", "/var/lib/casemate", "casemated's state: database, blobs, work files; owned by casemate"),
    Setting("paths.host_state", "/var/lib/casemate-hostd", "hostd's state: pods, layers, volumes; owned by root"),
    Setting("paths.run", "/run/casemate", "the API socket's folder; owned by casemate"),
    Setting("paths.host_run", "/run/casemate-hostd", "hostd's socket, mounts and runtime state; gone after a reboot"),
    Setting("daemon.user", "casemate", "the account that casemated runs as, and the only peer that hostd accepts"),
    Setting("daemon.group", "casemate", "members of this group may use the API socket"),
    Setting("runtime.namespace", "auto", "auto, crun or runc: auto probes crun, then runc, by running a container"),
    Setting("runtime.gvisor", "auto", "auto, off or the path of a runsc; it is probed by running a container"),
    Setting(
        "runtime.gvisor_platform",
        "auto",
        "auto, systrap, ptrace or kvm: auto probes systrap, then ptrace; kvm, which hangs on some hosts, by name only",
    ),
    Setting("runtime.stop_timeout", 10, "what Docker and Podman wait before KILL", "s", 0, 86_400),
    Setting(
        "network.pool",
        "10.209.0.0/16",
        "pods get /32 addresses from it; overlaps with neither Docker's nor Podman's default",
    ),
    Setting("network.dns", (), "resolvers that answer for names outside; empty: those of the host"),
    Setting(
        "network.resolver",
        True,
        "pods ask the node's own resolver, which knows pods by name; false: network.dns, and rules know no names",
    ),
    Setting("network.rebind_allowed", (), "names (also *.suffix) that may lead to pods' or the host's addresses"),
    Setting("network.mtu", 0, "0: that of the interface with the default route", "bytes", 0, 65_535),
    Setting("network.table", "casemate", "name of our nftables table: whatever we create in the kernel bears our name"),
    Setting(
        "network.link_prefix", "cm-", "prefix of our interfaces' names; 8 hexadecimal digits of the pod's id follow"
    ),
    Setting("cgroup.parent", "casemate", "the cgroup below which every pod has its own, in each hierarchy"),
    Setting(
        "userns.first_id",
        1_000_000_000,
        "first host uid of the pods' ranges: above what useradd gives to people",
        "",
        100_000,
        4_000_000_000,
    ),
    Setting(
        "userns.idmap",
        "auto",
        "auto or off: auto gives each pod a range of its own where the kernel maps the layers' owners (6.2 and newer); "
        "else, and with off, all pods share the first range",
    ),
    Setting("userns.ranges", 20_000, "how many pods can have a range of their own at one time", "pods", 1, 30_000),
    Setting(
        "limits.pids",
        4096,
        "default --pids-limit: stops a fork bomb, enough for a JVM or a build",
        "processes",
        1,
        4_194_304,
    ),
    Setting("limits.containers", 10_000, "bound on containers in the store", "containers", 1, 1_000_000),
    Setting(
        "limits.writable_bytes", 0, "0: none; otherwise the bound on a container's writable layer", "bytes", 0, 1 << 50
    ),
    Setting("logs.max_bytes", 10 << 20, "a container's log is rotated at this size", "bytes", 1 << 12, 1 << 40),
    Setting("image.parallel_layers", 3, "downloads at a time in one pull: what Docker uses", "layers", 1, 16),
    Setting(
        "image.max_manifest_bytes",
        4 << 20,
        "manifests above are refused (registries bound them at 4 MiB)",
        "bytes",
        1 << 10,
        64 << 20,
    ),
    Setting(
        "image.max_layer_bytes",
        64 << 30,
        "bound on one layer unpacked: stops a decompression bomb",
        "bytes",
        1 << 20,
        1 << 45,
    ),
    Setting("image.max_ratio", 1000, "bound on unpacked to packed size: gzip reaches 1032 on zeros", "", 10, 100_000),
    Setting("image.max_layer_files", 2_000_000, "bound on entries in one layer", "files", 1000, 100_000_000),
    Setting("registry.mirrors", (), "host=mirror pairs, tried in order before the host itself"),
    Setting("registry.insecure", (), "registries (host or host:port) that may be spoken to over plain HTTP"),
    Setting(
        "feed.max_age_days",
        14,
        "a feed of known vulnerabilities that is older makes a scan count as not whole; 0: no bound",
        "days",
        0,
        3650,
    ),
    Setting("feed.mirror", "", "where `casemate feed update` fetches feeds from: an address of a manifest.json"),
    Setting(
        "feed.keys",
        (),
        "files of public keys (PEM) that have to have signed the mirror's manifest; none: it is believed by TLS",
    ),
    Setting("feed.key_threshold", 1, "so many of feed.keys have to have signed", "keys", 1, 16),
    Setting("api.tls_listen", "", "address:port for TLS with client certificates; empty: off"),
    Setting("api.tls_certificate", "/etc/casemate/tls/server.crt", "server certificate chain, PEM"),
    Setting("api.tls_key", "/etc/casemate/tls/server.key", "server key, PEM, readable by casemate only"),
    Setting("api.tls_client_ca", "/etc/casemate/tls/client-ca.crt", "authority of the client certificates"),
    Setting("microvm.shim", "/opt/casemate/libexec/casemate-vm", "the OCI runtime of micro-VMs, and their monitor"),
    Setting("microvm.agent", "/opt/casemate/libexec/casemate-agent", "the guest's init, put into each initramfs"),
    Setting(
        "microvm.accelerator",
        "auto",
        "auto, kvm or tcg: auto boots a guest with KVM, for 3 s at most, and emulates where that fails",
    ),
    Setting(
        "microvm.pool",
        4,
        "how many machines may wait for a start, as many as the last minute's demand; 0: every start is by clone",
        "machines",
        0,
        64,
    ),
    Setting(
        "microvm.rehearsal",
        True,
        "under emulation a start that leaves a processor of the host's free uses it to translate its way ahead; takes "
        "72 MiB of the host's memory for each template in use",
    ),
    Setting(
        "microvm.template",
        "shared",
        "shared, project or none: machines are clones of one template, of one for each project, or boot cold",
    ),
    Setting(
        "microvm.scratch_bytes",
        10 << 30,
        "size of the sparse file in which the writable layer of a kept container lies, where --storage-size gives "
        "none; 0: in memory, as that of one with --rm",
        "bytes",
        0,
        1 << 44,
    ),
    Setting("microvm.qemu", "qemu-system-x86_64", "QEMU: a name that is looked for in PATH, or a path"),
    Setting(
        "microvm.memory_bytes",
        256 << 20,
        "memory of a machine whose pod and containers have no limit; what is never touched costs nothing",
        "bytes",
        128 << 20,
        64 << 30,
    ),
    Setting(
        "flows.records", 200_000, "ring of flow records, about 60 MB; 0: nothing is recorded", "records", 0, 10_000_000
    ),
    Setting("grants.host_paths", (), "users, or @groups, that may bind host paths; root always may"),
    Setting("grants.devices", (), "users, or @groups, that may pass devices; root always may"),
    Setting("grants.capabilities", (), "users, or @groups, that may add capabilities; root always may"),
    Setting("grants.host_namespaces", (), "users, or @groups, that may share host namespaces; root always may"),
    Setting("grants.trust", (), "users, or @groups, that may change the trust policy and the feeds; root always may"),
    Setting("grants.privileged", (), "users, or @groups, that may run privileged; root always may"),
    Setting(
        "grants.policy",
        (),
        "users, or @groups, that may change the operator's policy, answer referrals, quarantine, and release from "
        "walls; root always may",
    ),
    Setting("grants.metrics", (), "users, or @groups, that may read /metrics; root always may"),
    Setting(
        "projects.operators",
        (),
        "PROJECT=WHO pairs: a user, @group or tls:NAME that sees and changes what is in the project, and nothing else; "
        "none here and under projects.administrators: every member may do everything",
    ),
    Setting(
        "projects.administrators",
        (),
        "users, @groups or tls:NAME that all projects are open to, where projects have operators; root always is",
    ),
    Setting("metrics.tls_clients", (), "names of client certificates that may read /metrics over TLS; empty: none"),
    Setting("telemetry.endpoint", "", "OpenTelemetry collector, http(s)://host:4318; empty: nothing is sent"),
    Setting("telemetry.interval", 15, "between two exports of metrics: Prometheus' own default", "s", 1, 3600),
    Setting("telemetry.flows", True, "flow records are sent as logs too, where there is an endpoint"),
    Setting("telemetry.headers", (), "NAME=VALUE headers of each request, as collectors want them for access"),
    Setting("policy.default", "allow", "allow, deny or refer, where no rule and no segment decides: Kubernetes' own"),
    Setting("policy.wall_paths", "refuse", "refuse or warn: what becomes of documents that open a path across a wall"),
    Setting("policy.answer_lifetime", 300, "how long the kernel keeps an answer to a referral", "s", 0, 86_400),
    Setting("policy.prompt_deadline", 30, "how long a person has to answer; then it is denied", "s", 1, 60),
    Setting("policy.prompts", 256, "referrals that may wait for a person at a time; more are denied", "", 1, 10_000),
    Setting("policy.prompts_per_workload", 16, "of these, those that one workload opened", "", 1, 10_000),
)

_BY_NAME = {row.name: row for row in SETTINGS}


class Settings:
    """Checked values of every row of :data:`SETTINGS`."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = {row.name: row.default for row in SETTINGS}
        for name, value in values.items():
            self._values[name] = _row(name).check(value)

    def text(self, name: str) -> str:
        value = self._values[name]
        assert isinstance(value, str), name
        return value

    def number(self, name: str) -> int:
        value = self._values[name]
        assert isinstance(value, int), name
        return value

    def flag(self, name: str) -> bool:
        value = self._values[name]
        assert isinstance(value, bool), name
        return value

    def value(self, name: str) -> Value:
        """The value of the row *name*, whatever its type."""
        return self._values[name]

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._values[name]
        assert isinstance(value, tuple), name
        return value


def settings_from(document: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Settings from a parsed TOML *document* and an *environment*; unknown names are refused."""
    values: dict[str, Value] = {}
    for section, body in document.items():
        if not isinstance(body, Mapping):
            raise SettingInvalid(f"{section!r} stands outside a [section]")
        for key, value in body.items():
            name = f"{section}.{key}"
            values[name] = _row(name).check(value)
    for row in SETTINGS:
        if row.environment in environment:
            values[row.name] = row.parse(environment[row.environment])
    return Settings(values)


def _row(name: str) -> Setting:
    try:
        return _BY_NAME[name]
    except KeyError as error:
        raise SettingInvalid(f"there is no setting {name!r}") from error
