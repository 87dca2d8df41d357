"""Docker's shape of ``inspect``: what ``--format '{{.State.Running}}'`` finds in people's scripts.

``inspect --json`` gives the API's own values; this is a view of them. ``Casemate`` holds what Docker has no word for.
"""

from __future__ import annotations

from casemate.cli.show.rows import Row, integer, text

_NEVER = "0001-01-01T00:00:00Z"


def _object(value: object) -> Row:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def container(detail: Row) -> Row:
    """A ContainerDetail as ``docker container inspect`` would show it."""
    summary, request, resolved = (_object(detail.get(name)) for name in ("summary", "request", "resolved"))
    process = _object(resolved.get("process"))
    arguments = [str(part) for part in _list(process.get("args"))]
    return {
        "Id": text(summary, "id"),
        "Created": text(summary, "created_at"),
        "Path": arguments[0] if arguments else "",
        "Args": arguments[1:],
        "State": _state(summary, detail),
        "Image": text(summary, "image_digest"),
        "Name": f"/{text(summary, 'name')}",
        "RestartCount": integer(summary, "restarts"),
        "Platform": "linux",
        "HostConfig": _host_config(request, resolved),
        "Mounts": [_mount(_object(row)) for row in _list(resolved.get("mounts") or request.get("mounts"))],
        "Config": _config(summary, request, process),
        "NetworkSettings": _network(summary),
        "Casemate": {
            "Level": text(summary, "level"),
            "LevelDetail": detail.get("level_detail", ""),
            "Template": detail.get("template", ""),
            "SystemCalls": _calls(_object(detail.get("system_calls"))),
            "Project": text(summary, "project") or "default",
            "Pod": {"Id": text(summary, "pod"), "Name": text(summary, "pod_name")},
            "Admission": detail.get("admission"),
            "ImageDigest": text(summary, "image_digest"),
            "FirstId": detail.get("first_id", 0),
            "Layers": resolved.get("layers", []),
            "Warnings": detail.get("warnings", []),
            "Reason": detail.get("reason", ""),
        },
        "ExecIDs": detail.get("execs", []),
    }


def _calls(found: Row) -> Row:
    return {"Of": text(found, "of"), "Allowed": found.get("allowed"), "Names": _list(found.get("names"))}


def _state(summary: Row, detail: Row) -> Row:
    status = text(summary, "status")
    return {
        "Status": "running" if status == "stopping" else status,
        "Running": status in ("running", "paused", "stopping"),
        "Paused": status == "paused",
        "Restarting": status == "restarting",
        "OOMKilled": bool(detail.get("oom_killed")),
        "Dead": status == "broken",
        "Pid": integer(detail, "pid"),
        "ExitCode": integer(summary, "exit_code"),
        "Error": text(detail, "reason") if status == "broken" else "",
        "StartedAt": text(summary, "started_at") or _NEVER,
        "FinishedAt": text(summary, "finished_at") or _NEVER,
    }


def _host_config(request: Row, resolved: Row) -> Row:
    limits = _object(resolved.get("resources")) or _object(request.get("resources"))
    restart, network = _object(request.get("restart")), _object(request.get("network"))
    return {
        "NetworkMode": text(network, "mode") or "pod",
        "PortBindings": _bindings(network.get("ports")),
        "RestartPolicy": {"Name": text(restart, "name") or "no", "MaximumRetryCount": integer(restart, "maximum")},
        "AutoRemove": bool(request.get("auto_remove")),
        "CapAdd": request.get("cap_add", []),
        "CapDrop": request.get("cap_drop", []),
        "Dns": network.get("dns", []),
        "DnsOptions": network.get("dns_options", []),
        "DnsSearch": network.get("dns_search", []),
        "ExtraHosts": [f"{text(_object(row), 'name')}:{text(_object(row), 'address')}"
                       for row in _list(network.get("hosts"))],
        "GroupAdd": request.get("groups", []),
        "IpcMode": "host" if request.get("host_ipc") else "private",
        "PidMode": "host" if request.get("host_pid") else "",
        "Privileged": bool(request.get("privileged")),
        "PublishAllPorts": bool(network.get("publish_all")),
        "ReadonlyRootfs": bool(request.get("read_only")),
        "SecurityOpt": _security(request),
        "ShmSize": integer(resolved, "shm_bytes") or integer(request, "shm_bytes") or 64 << 20,
        "Sysctls": {text(_object(row), "name"): text(_object(row), "value") for row in _list(request.get("sysctls"))},
        "Memory": integer(limits, "memory_bytes"),
        "MemoryReservation": integer(limits, "memory_reservation_bytes"),
        "MemorySwap": integer(limits, "memory_swap_bytes"),
        "NanoCpus": integer(limits, "cpu_millis") * 1_000_000,
        "CpuShares": integer(limits, "cpu_shares"),
        "CpusetCpus": text(limits, "cpuset"),
        "PidsLimit": limits.get("pids"),
        "BlkioWeight": integer(limits, "io_weight"),
        "OomScoreAdj": integer(limits, "oom_score_adj"),
        "Ulimits": [{"Name": text(_object(row), "name"), "Soft": integer(_object(row), "soft"),
                     "Hard": integer(_object(row), "hard")} for row in _list(request.get("rlimits"))],
        "Init": bool(request.get("init")),
        "LogConfig": {"Type": "local" if request.get("log_keep", True) else "none",
                      "Config": {"max-size": str(request["log_max_bytes"])} if request.get("log_max_bytes") else {}},
        "Isolation": text(request, "level"),
    }  # fmt: skip


def _security(request: Row) -> list[str]:
    found = []
    if request.get("no_new_privileges", True):
        found.append("no-new-privileges")
    if request.get("seccomp") == "unconfined":
        found.append("seccomp=unconfined")
    return found


def _config(summary: Row, request: Row, process: Row) -> Row:
    return {
        "Hostname": text(request, "hostname") or text(summary, "id")[:12],
        "User": text(request, "user"),
        "Tty": bool(request.get("terminal")),
        "OpenStdin": bool(request.get("stdin")),
        "Env": process.get("env") or request.get("env", []),
        "Cmd": request.get("command"),
        "Image": text(request, "image"),
        "WorkingDir": text(process, "cwd") or text(request, "cwd"),
        "Entrypoint": request.get("entrypoint"),
        "Labels": summary.get("labels") or request.get("labels") or {},
        "StopSignal": text(request, "stop_signal") or "SIGTERM",
        "StopTimeout": request.get("stop_timeout"),
    }


def _bindings(ports: object) -> Row:
    found: dict[str, object] = {}
    for row in map(_object, _list(ports)):
        key = f"{row.get('container_port')}/{row.get('protocol', 'tcp')}"
        held = found.setdefault(key, [])
        assert isinstance(held, list)
        address = row.get("host_address", "0.0.0.0")  # noqa: S104 - shown
        held.append({"HostIp": address, "HostPort": str(row.get("host_port", 0))})
    return found


def _network(summary: Row) -> Row:
    address = text(summary, "address")
    whole: Row = {"IPAddress": address, "IPPrefixLen": 32 if address else 0}
    identity: Row = {"Identity": integer(summary, "identity")}  # ours: what the firewall knows it by
    return {"Ports": _bindings(summary.get("ports")), **whole, **identity, "Networks": {"pod": dict(whole)}}


def _mount(row: Row) -> Row:
    kind = text(row, "type")
    return {
        "Type": kind,
        "Name": text(row, "volume"),
        "Source": text(row, "source"),
        "Destination": text(row, "target"),
        "Mode": "ro" if row.get("read_only") else "",
        "RW": not row.get("read_only"),
        "Propagation": text(row, "propagation") or ("private" if kind == "bind" else ""),
    }


def image(detail: Row) -> Row:
    """An ImageDetail as ``docker image inspect`` would show it."""
    summary, config = _object(detail.get("summary")), _object(detail.get("config"))
    names = [str(name) for name in _list(summary.get("names"))]
    digest = text(summary, "digest")
    system, _, rest = text(summary, "platform").partition("/")
    architecture, _, variant = rest.partition("/")
    inner = _object(config.get("config")) or config
    repositories = sorted({name.partition("@")[0].rpartition(":")[0] or name for name in names})
    return {
        "Id": text(summary, "id"),
        "RepoTags": names,
        "RepoDigests": [f"{name}@{digest}" for name in repositories] if digest else [],
        "Created": text(summary, "created_at"),
        "Config": inner,
        "Architecture": architecture,
        "Variant": variant,
        "Os": system,
        "Size": integer(summary, "size_bytes"),
        "RootFS": {"Type": "layers", "Layers": _object(config.get("rootfs")).get("diff_ids")
                   or [row.get("diff_id") or row.get("digest") for row in map(_object, _list(detail.get("layers")))]},
        "Casemate": {"Layers": detail.get("layers", []), "Manifest": detail.get("manifest", {}),
                     "Containers": integer(summary, "containers")},
    }  # fmt: skip


def volume(row: Row) -> Row:
    return {
        "CreatedAt": text(row, "created_at"),
        "Driver": "local",
        "Labels": row.get("labels", {}),
        "Name": text(row, "name"),
        "Options": {},
        "Scope": "local",
        "Casemate": {"Project": text(row, "project") or "default", "UsedBy": row.get("used_by", []),
                     "SizeBytes": row.get("size_bytes", -1), "Anonymous": bool(row.get("anonymous"))},
    }  # fmt: skip


def pod(detail: Row) -> Row:
    """A PodDetail as ``podman pod inspect`` would show it."""
    summary, request = _object(detail.get("summary")), _object(detail.get("request"))
    return {
        "Id": text(summary, "id"),
        "Name": text(summary, "name"),
        "Created": text(summary, "created_at"),
        "State": text(summary, "status").capitalize(),
        "Hostname": text(request, "hostname") or text(summary, "name"),
        "Labels": summary.get("labels", {}),
        "NumContainers": len(_list(summary.get("containers"))),
        "Containers": [{"Id": held} for held in _list(summary.get("containers"))],
        "NetworkSettings": _network(summary),
        "Casemate": {"Level": text(summary, "level"), "Project": text(summary, "project") or "default",
                     "Implicit": bool(summary.get("implicit")), "FirstId": detail.get("first_id", 0)},
    }  # fmt: skip
