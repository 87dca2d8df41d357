"""casemate-hostd, started by :mod:`casemate.hostd.entry`. Reads the settings, recovers, and serves."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import pwd
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from casemate.host import heap, hierarchy, mountinfo, pidfd, probes, programs, syscalls
from casemate.host.peer import Peer
from casemate.host.seqpacket import listen
from casemate.host.settings_file import read_settings
from casemate.hostd import containers, housekeeping, microvm, pods, recovery
from casemate.hostd.context import Context
from casemate.hostd.firewall import Firewall
from casemate.hostd.folders import Folders
from casemate.hostd.keeping import Keeping
from casemate.hostd.operations import Operations
from casemate.hostd.records import Records
from casemate.hostd.relaying import RelayProcess
from casemate.hostd.server import Server
from casemate.hostd.state import State
from casemate.hostd.visibility import Visibility
from casemate.isolation import observe, runtime
from casemate.isolation.gvisor import driver
from casemate.isolation.gvisor import probe as gvisor
from casemate.isolation.gvisor.driver import GvisorLevel
from casemate.isolation.gvisor.inside import GvisorInside, Rest
from casemate.isolation.launcher import restore_null
from casemate.network import links
from casemate.network.nat import Nat
from casemate.spec.errors import CasemateError, HostLacks
from casemate.spec.settings import SettingInvalid, Settings
from casemate.storage.layers import LayerMounts
from casemate.storage.trash import Trash
from casemate.storage.volumes import Volumes

log = logging.getLogger("casemate.hostd")

#: How long operations that run may take to end when the daemon is asked to.
STOP_GRACE_S = 10.0


def harden() -> None:
    """What this process needs not to have or to be: no core dumps, no inherited descriptors, no wide umask."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.seal_inherited()
    # Modes are given where things are made; nothing becomes writable for others by omission.
    os.umask(0o022)
    heap.keep_one()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.chdir("/")


def share_run_folder(folder: Path) -> None:
    """Make hostd's run folder a mount that is shared, so that mounts made in it reach the namespaces that follow ours.

    On hosts whose / is shared already (systemd makes it so) this changes nothing that anybody sees.
    """
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            raise HostLacks(
                f"paths.host_run is {folder}, and nobody but its owner may pass through {parent}: pods must",
                remedy=f"chmod o+x {parent}",
            )
    # Not os.path.ismount: to that, a bind within one file system is none.
    if not any(one.target == folder for one in mountinfo.mounts_below(folder)):
        syscalls.mount(str(folder), folder, None, syscalls.MS_BIND)
    syscalls.mount(None, folder, None, syscalls.MS_SHARED)


def choose_id_shift(settings: Settings, scratch: Path) -> int:
    """What the layers' owners are shifted by (see :class:`Context`): 0 where the kernel maps them as it mounts.

    *scratch*: a folder of ours to mount an empty squashfs in. Where squashfs cannot be mounted at all this says
    nothing: the first layer will.
    """
    wanted = settings.text("userns.idmap")
    if wanted not in ("auto", "off"):
        raise SettingInvalid(f"userns.idmap: {wanted[:40]!r} is neither auto nor off")
    if wanted == "auto" and probes.can_map_layers(scratch):
        return 0
    log.warning("pods share one range of user ids: %s", "userns.idmap is off" if wanted == "off" else "old kernel")
    return settings.number("userns.first_id")


async def make_context(settings: Settings, step: Callable[[str], None] | None) -> Context:
    """Everything that operations work with; raises :class:`HostLacks` where the host cannot serve at all."""
    folders = Folders(Path(settings.text("paths.host_state")), Path(settings.text("paths.host_run")))
    trash = Trash(folders.state)
    facts = observe.observe()
    nat = Nat(settings.text("network.table"), settings.text("network.link_prefix"), settings.text("network.pool"))
    context = Context(
        settings=settings,
        folders=folders,
        records=Records(folders),
        state=State(),
        facts=facts,
        cgroups=hierarchy.detect(),
        levels=runtime.levels(runtime.Found(None, "not yet probed")),
        layers=LayerMounts(folders.state, folders.run),
        volumes=Volumes(folders.state, trash),
        trash=trash,
        nat=nat,
        visibility=Visibility(settings, lambda: nat.nft, lambda event: context.emit(event)),  # noqa: PLW0108 - it is set later
        boot_id=observe.boot_id(),
        conmon=programs.find_program("conmon"),
        casemated_uid=_uid_of(settings.text("daemon.user")),
        mtu_bytes=links.default_mtu_bytes(settings.number("network.mtu")),
        id_shift=0,
        emit=lambda _event: None,
    )
    context.firewall = Firewall(
        settings,
        folders,
        context.state,
        links=lambda: pods.all_links(context),
        is_heard=lambda: context.peer is not None,
        emit=lambda event: context.emit(event),  # noqa: PLW0108 - it is set later
        on_hold_ended=lambda pod: pods.hold_ended(context, pod),
    )
    relay = RelayProcess(folders.relay_socket, context.casemated_uid)
    context.keeping = Keeping(
        settings,
        context.state,
        lambda: nat.nft,
        context.firewall.followed,
        relay,
        emit=lambda event: context.emit(event),  # noqa: PLW0108 - it is set later
        record=folders.relay_record,
        is_heard=lambda: context.peer is not None,
    )
    if step is not None:
        context.step = step
    recovery.make_folders(context)
    share_run_folder(folders.run)
    context.id_shift = choose_id_shift(settings, folders.run)
    await _choose_levels(context)
    return context


async def _choose_levels(context: Context) -> None:
    """The levels that this host offers, each with the runtime that was found to work."""
    settings = context.settings
    # The last range is the probe's own: pods count from the first.
    last = settings.number("userns.first_id") + settings.number("userns.ranges") * 65_536
    found = await runtime.choose(
        settings.text("runtime.namespace"), context.folders.run, context.facts, settings.text("cgroup.parent"), last
    )
    context.levels = runtime.levels(found)
    await _add_gvisor(context, last)


async def _add_gvisor(context: Context, first_id: int) -> None:
    """Probe runsc with ids from *first_id*; the level works from here on, or says why it does not."""
    settings = context.settings
    probe = gvisor.Probe(context.folders.run, context.facts, context.cgroups, settings.text("cgroup.parent"), first_id)
    found = await gvisor.choose(settings.text("runtime.gvisor"), settings.text("runtime.gvisor_platform"), probe)
    if found.runtime is None:
        context.levels.lack("gvisor", found.why)
        return
    context.gvisor_calls = found.calls
    one, shim, rest = found.runtime, settings.text("microvm.shim"), None
    started = one
    if os.access(shim, os.X_OK):
        started = driver.wrapped(one, shim)
        launch = functools.partial(context.launcher, started)
        rest = Rest(context.folders.run / "gvisor", Path(shim), launch, settings.number("limits.pids"))
    inside = GvisorInside(started, context.cgroups, settings.text("cgroup.parent"), rest)
    context.levels.add(GvisorLevel(started, f"runsc {found.runtime.version}: {found.why}", inside))


def _uid_of(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise SettingInvalid(f"daemon.user: there is no account {name!r}", account=name) from error


async def serve(settings: Settings, step: Callable[[str], None] | None = None) -> None:
    """Recover, then serve until SIGTERM or SIGINT. Containers go on."""
    owner = restore_null()
    if owner is not None:
        log.warning("/dev/null belonged to user %d, to whom a container's runtime gave it: it is root's again", owner)
    context = await make_context(settings, step)
    context.trash.open()
    context.volumes.open()

    def on_peer(peer: Peer | None) -> None:
        context.peer = None if peer is None else pidfd.identity(peer.pid)
        if peer is None:
            context.peer_gone.set()
            context.firewall.peer_gone()

    server = Server(Operations(context).handle, context.casemated_uid, on_peer, context.firewall.told)
    context.emit = server.emit
    recovery.load(context)
    context.layers.open(recovery.layer_users(context))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        async with asyncio.TaskGroup() as group:
            ready = asyncio.Event()
            machines = group.create_task(microvm.serve(context, ready), name="microvm")
            # Machines are found before the records are compared with what runs.
            await ready.wait()
            log.info("levels: %s", context.levels.describe())
            await recovery.converge(context)
            if any(pods.all_links(context)) or context.firewall.is_known:
                await pods.ensure_firewall(context)
            await _until_asked_to_end(context, server, group, ended)
            machines.cancel()
    finally:
        context.nat.close()
        context.keeping.close()
        context.firewall.close()
        for launcher in context.launchers.values():
            launcher.close()


async def _until_asked_to_end(context: Context, server: Server, group: asyncio.TaskGroup, ended: asyncio.Event) -> None:
    listening = listen(context.folders.socket, mode=0o600, owner=(context.casemated_uid, 0))
    log.info(
        "serving at %s: %d pods, %d containers",
        context.folders.socket,
        len(context.state.pods),
        len(context.state.containers),
    )
    tasks = [
        group.create_task(server.serve(listening), name="server"),
        group.create_task(housekeeping.run(context, containers.leave_machine), name="housekeeping"),
    ]
    try:
        await ended.wait()
        log.info("ending; containers go on")
        await server.quiet(STOP_GRACE_S)
        for task in tasks:
            task.cancel()
    finally:
        listening.close()


def main(argv: Sequence[str] | None = None, *, step: Callable[[str], None] | None = None) -> int:
    """Run the daemon; the exit status. *step* is for crash tests: it is called at each step of the journal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    if arguments not in ([], ["--check"]):
        print("usage: casemate-hostd [--check]   (settings: /etc/casemate/casemate.toml)", file=sys.stderr)  # noqa: T201
        return 2
    try:
        settings = read_settings()
        if arguments:
            return 0
        if os.geteuid() != 0:
            raise HostLacks("casemate-hostd needs root", remedy="Start it with systemctl or `sudo make start`.")
        harden()
        # As casemated does: what was imported stays, and packets wait while the collector looks at everything.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(settings, step))
    except CasemateError as error:
        log.error("%s: %s\n%s", error.title, error.detail, error.instance_remedy or error.remedy)
        return 1
    except FileExistsError as error:
        log.error("another casemate-hostd serves: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
