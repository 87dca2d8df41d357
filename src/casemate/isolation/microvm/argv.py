"""QEMU's command line, one value per switch: pure. Source: qemu(1) 7.2; the reasons stand beside each choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

#: Descriptors that the monitor makes for QEMU (shim/monitor.c), and the first that we pass.
PORT_FD, CONSOLE_FD, QMP_FD, END_FD, FIRST_PASSED_FD = 4, 5, 6, 7, 10
#: The set of descriptors (qemu(1), -add-fd) by which the scratch file is opened: a path would be checked against QEMU's
#: user, whose the file is not.
SCRATCH_FDSET = 900
#: The guest's view of its block device is fixed at the template: larger than any image, read only where layers are.
DISK_SECTORS = 1 << 31
MIB = 1 << 20
#: QEMU's microvm has eight places for devices; disk, scratch device, port and folders take four.
MOST_CARDS = 4


class Switch(Protocol):
    """One of QEMU's switches."""

    def words(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Machine:
    """``microvm`` without the devices that a clone would have to carry. No timer chip: the TSC's rate is given to the
    kernel (:func:`kernel_command_line`), which else measures it against the PIT, fails under load and hangs."""

    def words(self) -> tuple[str, ...]:
        off = ["x-option-roms", "pit", "pic", "rtc", "pcie", "usb", "graphics", "ioapic2"]
        options = ",".join(f"{name}=off" for name in off)
        return ("-machine", f"microvm,acpi=on,isa-serial=on,{options},memory-backend=ram")


#: What costs an emulator more than it gives (decision 0100): with ERMS and FSRM the guest's kernel copies and clears
#: byte by byte, with SMAP each access to a program's memory ends two translated blocks, with LA57 each walk of its
#: page tables reads a fifth one; protection keys are written at each change of task. KVM has what the host has.
_EMULATED_OFF = "erms=off,fsrm=off,smap=off,la57=off,pku=off"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """*translation_mib* bounds the emulator's cache of translated code, which is memory of each VM's own."""

    kind: Literal["tcg", "kvm"]
    translation_mib: int = 64

    def words(self) -> tuple[str, ...]:
        if self.kind == "kvm":
            # MSR 0x10a stops the guest on some hosts.
            return ("-accel", "kvm", "-cpu", "host,arch-capabilities=off")
        return ("-accel", f"tcg,tb-size={self.translation_mib}", "-cpu", f"max,{_EMULATED_OFF}")


@dataclass(frozen=True, slots=True)
class Memory:
    """Guest memory in the file behind descriptor *fd*: *shared* for a template, else private (copy on write)."""

    memory_bytes: int
    fd: int
    shared: bool
    cpus: int = 1

    def words(self) -> tuple[str, ...]:
        share = "on" if self.shared else "off"
        size = self.memory_bytes // MIB
        backend = f"memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{self.fd},share={share}"
        return ("-m", f"{size}M", "-smp", str(self.cpus), "-object", backend)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A cold boot from descriptors."""

    kernel_fd: int
    initramfs_fd: int
    command_line: str

    def words(self) -> tuple[str, ...]:
        kernel, initramfs = f"/proc/self/fd/{self.kernel_fd}", f"/proc/self/fd/{self.initramfs_fd}"
        return ("-kernel", kernel, "-initrd", initramfs, "-append", self.command_line)


@dataclass(frozen=True, slots=True)
class Incoming:
    """Wait for the state; the monitor says which by QMP."""

    def words(self) -> tuple[str, ...]:
        return ("-incoming", "defer")


@dataclass(frozen=True, slots=True)
class Layers:
    """The image's layers as one read-only block device: *node* describes it (blockdev JSON)."""

    node: str

    def words(self) -> tuple[str, ...]:
        return ("-blockdev", self.node, "-device", "virtio-blk-device,drive=layers,serial=layers")


@dataclass(frozen=True, slots=True)
class WaitingLayers:
    """As :class:`Layers`, from a node and the one that stands above it, so that the lower one can be replaced."""

    lower: str
    upper: str

    def words(self) -> tuple[str, ...]:
        device = ("-device", "virtio-blk-device,drive=layers,serial=layers")
        return ("-blockdev", self.lower, "-blockdev", self.upper, *device)


@dataclass(frozen=True, slots=True)
class Scratch:
    """The device of the writable layer, over *nodes* (blockdev JSON, the device's own last), by the set *fdset* of
    descriptors. What the host cannot write (a full disk) is the guest's error, not a machine that stands still."""

    nodes: Sequence[str]
    fd: int | None = None

    def words(self) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        if self.fd is not None:
            found = ("-add-fd", f"fd={self.fd},set={SCRATCH_FDSET}")
        for node in self.nodes:
            found += ("-blockdev", node)
        device = "virtio-blk-device,drive=scratch,serial=scratch,werror=report,rerror=report"
        return (*found, "-device", device)


@dataclass(frozen=True, slots=True)
class Port:
    """The one virtio-serial port: everything between host and agent."""

    def words(self) -> tuple[str, ...]:
        return (
            *("-chardev", f"socket,id=port,fd={PORT_FD}"),
            *("-device", "virtio-serial-device,id=serial,max_ports=2"),
            *("-device", "virtserialport,bus=serial.0,nr=1,chardev=port,name=casemate"),
        )


@dataclass(frozen=True, slots=True)
class Network:
    """A network card, on *tap_fd* or on nothing. The guest sets its own address: the template's is a placeholder, by
    which the agent tells the machine's cards apart; *number*: which of them."""

    tap_fd: int | None = None
    number: int = 0

    def words(self) -> tuple[str, ...]:
        # Without offloads the device is the same whether a tap is behind it or not, as a clone's state demands.
        off = "csum guest_csum gso guest_tso4 guest_tso6 guest_ecn guest_ufo host_tso4 host_tso6 host_ecn host_ufo"
        device = f"virtio-net-device,mac=02:00:00:00:00:{self.number + 1:02x}," + ",".join(
            f"{name}=off" for name in off.split()
        )
        if self.tap_fd is None:
            return ("-device", device)
        name = f"net{self.number or ''}"
        return ("-netdev", f"tap,id={name},fd={self.tap_fd},vhost=off", "-device", f"{device},netdev={name}")


@dataclass(frozen=True, slots=True)
class Shares:
    """The 9p server over ``/share`` of the jail, where folders are attached when they are known; empty in a template.

    *passthrough*: owners and modes are the files' own, in QEMU's user namespace. *remap*: each folder below may lie
    on another device, whose inode numbers would meet those of its neighbour.
    """

    def words(self) -> tuple[str, ...]:
        return (
            *("-fsdev", "local,id=share,path=/share,security_model=passthrough,multidevs=remap"),
            *("-device", "virtio-9p-device,fsdev=share,mount_tag=casemate"),
        )


@dataclass(frozen=True, slots=True)
class Plain:
    """No default devices, no files of the user's, a console and a QMP on the monitor's sockets, QEMU's own sandbox."""

    def words(self) -> tuple[str, ...]:
        return (
            *("-no-user-config", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            *("-chardev", f"socket,id=console,fd={CONSOLE_FD}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,fd={QMP_FD}", "-mon", "chardev=qmp,mode=control"),
        )


def kernel_command_line(tsc_khz: int | None, cpus: int = 1) -> str:
    """The guest kernel's parameters. *tsc_khz*: the rate of the host's time stamp counter, for emulation; *cpus*: where
    there is a second one, it is a rehearsal's."""
    words = [
        "console=ttyS0 quiet loglevel=4 panic=-1",  # a panic ends QEMU (-no-reboot), its text is in the tail
        "random.trust_cpu=on",  # the template draws nothing that a clone keeps; the clone is seeded anew
        "mitigations=off",  # between processes of one guest; the wall is the machine's
        "audit=0 nowatchdog",
        # Without AppArmor, TOMOYO and BPF, for which no guest has rules: their hooks stand before every open and exec.
        "lsm=landlock,lockdown,yama,integrity",
    ]
    if tsc_khz is not None:
        words.append(f"tsc_early_khz={tsc_khz} tsc=reliable no_timer_check")
    if cpus > 1:
        # Nothing is moved there, and who waits for all processors does not wait for their next tick.
        words.append("isolcpus=1 rcu_nocbs=1 rcupdate.rcu_expedited=1")
    return " ".join(words)


def argv(program: str, switches: Sequence[Switch]) -> list[str]:
    """The whole command line."""
    return [program, *(word for switch in switches for word in switch.words())]
