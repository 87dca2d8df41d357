"""What can go wrong in casemated's own work; each class is one documented code."""

from __future__ import annotations

from casemate.spec.errors import Conflict, HostLacks, InvalidArgument, LimitExceeded, NotFound, PermissionDenied


class ContainerNotFound(NotFound):
    code = "container.not_found"
    title = "No such container"
    remedy = "`casemate ps -a` lists the containers."


class PodNotFound(NotFound):
    code = "pod.not_found"
    title = "No such pod"
    remedy = "`casemate pod ps` lists the pods."


class VolumeNotFound(NotFound):
    code = "volume.not_found"
    title = "No such volume"
    remedy = "`casemate system df` shows what volumes there are; `-v NAME:/path` makes one."


class ProjectNotFound(NotFound):
    code = "project.not_found"
    title = "No such project"
    remedy = "`casemate project ls` lists them, `casemate project create NAME` makes one."


class ProjectExists(Conflict):
    code = "project.exists"
    title = "A project of this name is there"
    remedy = "Use it with --project NAME, or choose another name."


class ProjectInUse(Conflict):
    code = "project.in_use"
    title = "The project is not empty"
    remedy = (
        "Remove what is in it first: `casemate ps -a --project NAME`, `casemate volume ls --project NAME`, "
        "`casemate policy ls --project NAME`."
    )


class ExecNotFound(NotFound):
    code = "exec.not_found"
    title = "No such exec"
    remedy = "An exec is kept while its container runs; start another with `casemate exec`."


class OperationNotFound(NotFound):
    code = "operation.not_found"
    title = "No such operation"
    remedy = "Operations are kept for a while after their end; start the work again."


class PlatformOther(Conflict):
    code = "image.platform_other"
    title = "The image that is here is for another platform"
    remedy = "Pull the one that is wanted: `casemate pull --platform linux/ARCHITECTURE IMAGE`."


class PlatformForeign(HostLacks):
    code = "image.platform_foreign"
    title = "This host cannot run programs of the image's platform"
    remedy = "`apt install qemu-user-static` lets it (slowly); or pull the image for this host's platform."


class ReferenceAmbiguous(InvalidArgument):
    code = "object.ambiguous"
    title = "More than one object begins like that"
    remedy = "Write more digits of the id, or the name."


class NameTaken(Conflict):
    code = "name.taken"
    title = "The name is in use"
    remedy = "Choose another name, or remove the one that has it: `casemate rm NAME`."


class ContainerRunning(Conflict):
    code = "container.running"
    title = "The container is running"
    remedy = "Stop it first (`casemate stop`), or remove it with `casemate rm -f`."


class ContainerNotRunning(Conflict):
    code = "container.not_running"
    title = "The container is not running"
    remedy = "`casemate start` starts it; `casemate unpause` lets one go on that is paused."


class ContainerState(Conflict):
    code = "container.state"
    title = "The container's state does not allow this"
    remedy = "`casemate inspect` shows the state."


class PodInUse(Conflict):
    code = "pod.in_use"
    title = "The pod still has containers"
    remedy = "Remove them first, or remove the pod with `casemate pod rm -f`."


class VolumeInUse(Conflict):
    code = "volume.in_use"
    title = "A container uses the volume"
    remedy = "Remove the container first: `casemate rm`."


class ImageInUse(Conflict):
    code = "image.in_use"
    title = "A container uses the image"
    remedy = "Remove the container first, or remove the image with --force."


class PortTaken(Conflict):
    code = "port.taken"
    title = "The port of the host is in use"
    remedy = "Publish another port, or stop what listens there (`ss -ltnup`)."


class UserNotFound(InvalidArgument):
    code = "container.user_not_found"
    title = "The image has no such user or group"
    remedy = "Give a number (`--user 1000:1000`), or a name that the image's /etc/passwd holds."


class CommandMissing(InvalidArgument):
    code = "container.command_missing"
    title = "Neither the request nor the image names a command"
    remedy = "Give a command after the image's name."


class LevelUnavailable(HostLacks):
    code = "isolation.unavailable"
    title = "This host does not offer the isolation level"
    remedy = "Do what the detail names, or choose another level: `casemate system info` lists them."


class ProjectDenied(PermissionDenied):
    code = "rights.project"
    title = "The project is not open to this person"
    remedy = (
        "Name a project of yours with --project or CASEMATE_PROJECT (`casemate system info` lists them); the "
        "administrator adds operators under projects.operators in /etc/casemate/casemate.toml."
    )


class AdministratorNeeded(PermissionDenied):
    code = "rights.administrator"
    title = "This is the administrator's, since it concerns more than one project"
    remedy = "Ask root, or somebody whom projects.administrators of /etc/casemate/casemate.toml names."


class TooManyContainers(LimitExceeded):
    code = "limit.containers"
    status = 409
    title = "The bound on containers is reached"
    remedy = "Remove containers (`casemate rm`), or raise limits.containers in /etc/casemate/casemate.toml."


class AddressesExhausted(LimitExceeded):
    code = "network.addresses_exhausted"
    status = 409
    title = "The pool of pod addresses is used up"
    remedy = "Remove pods, or widen network.pool in /etc/casemate/casemate.toml."


class TooMany(LimitExceeded):
    """Too many of something at a time (watchers, operations, attached clients)."""

    code = "limit.concurrent"
    status = 429
    title = "Too many of these at a time"
    remedy = "Wait until others have ended."
    retryable = True


class ClientTooSlow(LimitExceeded):
    code = "attach.too_slow"
    status = 409
    title = "An attached client did not read while others waited for the output"
    remedy = "Attach again; `casemate logs` has what was missed."
