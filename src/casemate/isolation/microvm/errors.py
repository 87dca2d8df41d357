"""What can go wrong with a micro-VM, by the step that failed; the guest's console stands in the detail."""

from __future__ import annotations

from casemate.spec.errors import CasemateError, HostLacks, InvalidArgument, NotFound


class KernelMissing(HostLacks):
    code = "microvm.kernel_missing"
    title = "There is no guest kernel on this host"
    remedy = "`sudo casemate system kernel install` fetches Debian's, and installs nothing on the host."


class QemuMissing(HostLacks):
    code = "microvm.qemu_missing"
    title = "QEMU is missing, or too old"
    remedy = "apt-get install qemu-system-x86; version 7.2 or newer is needed."


class ShimMissing(HostLacks):
    code = "microvm.shim_missing"
    title = "casemate-vm is not installed"
    remedy = "`sudo make run` builds and installs it; the setting microvm.shim says where it is looked for."


class TemplateFailed(CasemateError):
    code = "microvm.template"
    title = "The template of the micro-VM could not be made or read"
    remedy = "The console's tail says where the guest stopped. A damaged template is made anew by itself."
    retryable = True


class MonitorFailed(CasemateError):
    code = "microvm.monitor"
    title = "The monitor of the micro-VM failed"
    remedy = "The detail holds its last words; `casemate system doctor` checks the host."
    retryable = True


class AgentFailed(CasemateError):
    code = "microvm.agent"
    title = "The guest's agent refused, or did not answer in time"
    remedy = "The detail holds the guest's console; start the container anew."
    retryable = True


class RootfsFailed(CasemateError):
    code = "microvm.rootfs"
    title = "The guest could not put the image's layers together"
    remedy = "Pull the image again; give the pod more memory if its writable layer is what is full."


class NetworkFailed(CasemateError):
    code = "microvm.network"
    title = "The guest's network could not be set up"
    remedy = "`casemate system doctor` checks the host's side; the detail says which step the guest refused."


class ShareFailed(CasemateError):
    code = "microvm.share"
    title = "A folder or file of the host could not be given to the micro-VM"
    remedy = "Check that the source exists; a file system that vanished must be mounted again, then start anew."


class BundleUnsupported(InvalidArgument):
    code = "microvm.bundle_unsupported"
    title = "The bundle asks for something that a micro-VM cannot give yet"
    remedy = "docs/reference/levels.md lists what each level has; or choose another --isolation."


class MemoryUnfit(InvalidArgument):
    code = "microvm.memory"
    title = "No machine of this host can have that much memory"
    remedy = "Run it with a smaller --memory, or on a larger host; `casemate system info` shows what this one has."


class ScratchUnfit(InvalidArgument):
    code = "microvm.scratch"
    title = "The writable layer cannot be had in this size, or not on disk"
    remedy = "Choose another --storage-size; a guest kernel with ext4 and e2fsprogs on the host are needed for any."


class PathMissing(NotFound):
    code = "microvm.path_missing"
    title = "No such path in the container"
    remedy = "casemate exec CONTAINER ls"


class CopyRefused(InvalidArgument):
    code = "microvm.copy_refused"
    title = "Files cannot be copied in this way"
    remedy = "The detail names the entry; `tar -tvf` shows what is in an archive."


class MachineLost(CasemateError):
    code = "microvm.machine_lost"
    title = "The micro-VM's monitor or QEMU was killed, or ended by itself"
    remedy = "Start the container anew; the detail and the host's log say who ended it."
    retryable = True


class MachineMemory(CasemateError):
    code = "microvm.machine_memory"
    title = "The micro-VM took more memory on the host than its guest and the monitor may have"
    remedy = "Start the container anew; `casemate stats` shows what a machine takes. This should not happen: report it."
    retryable = True


class GuestPanicked(CasemateError):
    code = "microvm.guest_panic"
    title = "The guest's kernel panicked"
    remedy = "The detail holds the guest's console; start the container anew, or `casemate system kernel use` another."
    retryable = True


class MachineMissing(NotFound):
    code = "microvm.container_missing"
    title = "No container of this name runs in a micro-VM"
    remedy = "`casemate-vm list` shows those that do."


class HostdUnreachable(HostLacks):
    """Said by casemate-vm itself (shim/ask.c), which engines start whether or not hostd runs."""

    code = "microvm.hostd_unreachable"
    title = "casemate-vm cannot reach casemate-hostd, which does its work"
    remedy = "Run `systemctl start casemate-hostd`; only root may ask it."
