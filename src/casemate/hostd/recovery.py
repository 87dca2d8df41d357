"""The start of hostd: what the records say is compared with what the kernel has, and made one again.

Nothing is killed but what the records call half made or half removed. What runs is watched again; what ended
meanwhile is recorded as ended; what a reboot took is "exited", with its writable layer kept.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from casemate.host import pidfd
from casemate.hostd import containers, execs, pods
from casemate.hostd.context import Context
from casemate.hostd.errors import RecordCorrupt
from casemate.hostd.processes import conmons, kill_conmon
from casemate.hostd.records import ContainerRecord
from casemate.hostd.state import Container, Pod, changed
from casemate.hostd.watching import UNKNOWN_EXIT_CODE, read_exit, watch
from casemate.network import links
from casemate.spec.errors import CasemateError

log = logging.getLogger("casemate.hostd")

REBOOTED = "the host restarted"
#: Pods made one again at a time before the loop gets a turn.
_TURN = 50


def load(context: Context) -> None:
    """Read every record into the state; nothing is changed but folders without a record, which go to the trash."""
    for pod_id in context.records.pods():
        if not context.folders.pod_record(pod_id).exists():
            log.warning("pod folder %s has no record: thrown away", pod_id[:12])
            context.trash.throw(context.folders.pod(pod_id))
            continue
        try:
            pod = context.state.add_pod(context.records.read_pod(pod_id))
        except RecordCorrupt as error:
            log.error("%s", error.detail)
            continue
        for container_id in context.records.containers(pod_id):
            if not context.folders.container_record(pod_id, container_id).exists():
                log.warning("container folder %s has no record: thrown away", container_id[:12])
                containers.throw(context, pod_id, container_id)
                continue
            try:
                context.state.add_container(pod, context.records.read_container(pod_id, container_id))
            except RecordCorrupt as error:
                log.error("%s", error.detail)


async def converge(context: Context) -> None:
    """Make records and kernel one again. Raises nothing for a single pod: the doctor names what is left."""
    unsure = any(one.record.phase in ("creating", "removing") for one in context.state.containers.values())
    # One walk through /proc, and only when something was half done.
    found = conmons(context.folders.run) if unsure else {}
    for index, pod in enumerate(list(context.state.pods.values())):
        try:
            await _pod(context, pod, found)
        except (CasemateError, OSError) as error:
            log.error("pod %s: %s", pod.id[:12], error)
        if index % _TURN == 0:
            await asyncio.sleep(0)
    known = {pods.interface(context, pod) for pod in context.state.pods.values()}
    context.dead_links |= {one for one in links.taps(context.settings.text("network.link_prefix")) if one not in known}
    context.links_wait.set()
    try:
        for address in pods.idle_ports(context):
            log.info("ports published to %s, where nothing runs: taken back", address)
            context.nat.unpublish(address)
    except (CasemateError, OSError) as error:
        log.error("published ports: %s", error)


async def _pod(context: Context, pod: Pod, found: dict[str, int]) -> None:
    rebooted = pod.record.boot_id != context.boot_id
    for container in list(pod.containers.values()):
        await _container(context, pod, container, found)
    if pod.record.phase in ("creating", "removing") and not pod.containers:
        log.info("pod %s was %s when hostd ended: taken away", pod.id[:12], pod.record.phase)
        await pods.discard(context, pod)
    elif rebooted:
        log.info("pod %s is of an earlier boot: made anew when a container of it starts", pod.id[:12])


async def _container(context: Context, pod: Pod, container: Container, found: dict[str, int]) -> None:
    record = container.record
    match record.phase:
        case "creating" | "removing":
            log.info("container %s was %s when hostd ended: taken away", container.id[:12], record.phase)
            await _finish(context, pod, container, found.get(container.id))
        case "created" | "running":
            if record.boot_id != context.boot_id:
                _after_reboot(context, container)
            else:
                watch(context, container)
                if container.record.phase == "running":
                    execs.adopt(context, container)
        case "exited":
            container.ended.set()
            level = context.levels.get(pod.record.spec.level)
            if level is not None and level.inside is not None and level.inside.knows(container.id):
                context.spent.add(container.id)
                context.spent_waits.set()


async def _finish(context: Context, pod: Pod, container: Container, conmon: int | None) -> None:
    record = container.record
    same_boot = record.boot_id == context.boot_id
    if conmon is not None:
        await kill_conmon(conmon, context.folders.run, container.id)
    if same_boot and record.process is not None:
        pidfd.send_signal(record.process.pid, record.process.start_ticks, 9)
    await containers.discard(context, pod, container)


def _after_reboot(context: Context, container: Container) -> None:
    """Nothing of it runs, whatever its pids name now. An exit file tells of an end before the reboot."""
    code, finished, reason = read_exit(context.folders.exit_file(container.id))
    record: ContainerRecord = changed(
        container,
        phase="exited",
        exit_code=UNKNOWN_EXIT_CODE if reason else code,
        finished_at=finished,
        reason=REBOOTED if reason else "",
        conmon=None,
        process=None,
    )
    context.records.write_container(record)
    container.ended.set()


def layer_users(context: Context) -> dict[str, tuple[str, ...]]:
    """Container to its layers: none of those may be removed."""
    return {one.id: one.record.spec.layers for one in context.state.containers.values()}


def make_folders(context: Context) -> None:
    """The folders that everything else expects; 0711 where a pod's root must pass through to what is its own."""
    folders = context.folders
    places: tuple[tuple[Path, int], ...] = (
        (folders.state, 0o700),
        (folders.pods, 0o700),
        (folders.run, 0o711),
        (folders.exits, 0o700),
        (folders.containers, 0o711),
        (folders.netns, 0o711),
        (folders.namespaces, 0o711),
        (folders.runtime, 0o700),
    )
    for place, mode in places:
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(mode)
