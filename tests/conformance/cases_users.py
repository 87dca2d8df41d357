"""Users, groups, capabilities and what a container may not do."""

# ruff: noqa: E501 - a script and what it prints stand in one line

from __future__ import annotations

from tests.conformance.case import box_prints, case, run_prints
from tests.conformance.chamber import Chamber

run_prints("user.root", "root by default", "id -u; id -g", "0\n0")
run_prints("user.by_name", "-u NAME", "id -u; id -g", "1000\n1000", ("-u", "app"))
run_prints("user.by_number", "-u NUMBER:NUMBER", "id -u; id -g", "1234\n2345", ("-u", "1234:2345"))
run_prints("user.unknown_number", "a number that nobody has a name for", "id -u", "4242", ("-u", "4242"))
run_prints("user.groups_of_name", "the groups that /etc/group gives", "id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '",
           "1000 2000 ?", ("-u", "app"))  # fmt: skip
run_prints("user.group_add", "--group-add", "id -G | tr ' ' '\\n' | grep -c -E '^(2000|7777)$'", "2",
           ("-u", "app", "--group-add", "7777"))  # fmt: skip
run_prints("user.owns_files", "files belong to the user", "touch /tmp/x; stat -c '%u %g %a' /tmp/x", "1000 1000 644",
           ("-u", "app"))  # fmt: skip
run_prints("user.cannot_write", "another's files stay closed", "echo x > /etc/passwd", "", ("-u", "app"), code=1)
run_prints("user.cannot_read", "modes hold", "chmod 600 /etc/group; su app -s /bin/sh -c 'cat /etc/group' 2>&1 | grep -c denied",
           "1", ("--security-opt", "no-new-privileges=false"))  # fmt: skip
box_prints("user.exec_as", "exec -u", "id -u; id -g", "1000\n1000", ("-u", "app"))
box_prints("user.exec_as_number", "exec -u NUMBER", "id -u", "777", ("-u", "777"))
box_prints("user.chown", "root may give files away", "touch /tmp/o; chown 33:44 /tmp/o; stat -c '%u %g' /tmp/o; rm /tmp/o",
           "33 44")  # fmt: skip


@case("security.no_new_privs", "no_new_privs is set, by the kernel's own answer")
def no_new_privs(chamber: Chamber) -> None:
    assert chamber.run(*chamber.probe, script="/probe no_new_privs").stdout == b"1\n"


@case("security.no_new_privs_exec", "in an exec too")
def no_new_privs_exec(chamber: Chamber) -> None:
    with chamber.started(*chamber.probe) as name:
        assert chamber.ok("exec", name, "/probe", "no_new_privs") == "1"


run_prints("security.seccomp", "a seccomp filter is on", "grep ^Seccomp: /proc/self/status | tr -d '\\t'", "Seccomp:2")
run_prints("security.cap_drop_all", "--cap-drop ALL", "grep CapEff /proc/self/status | tr -d '\\t'", "CapEff:0+",
           ("--cap-drop", "ALL"))  # fmt: skip
run_prints("security.user_has_no_capability", "a user holds none", "grep CapEff /proc/self/status | tr -d '\\t'",
           "CapEff:0+", ("-u", "app"))  # fmt: skip
run_prints("security.bounding_set", "what was dropped cannot come back",
           "grep CapBnd /proc/self/status | tr -d '\\t'", "CapBnd:0+", ("--cap-drop", "ALL"))  # fmt: skip
run_prints("security.dropped_chown", "a dropped capability is missed", "chown 5 /tmp 2>/dev/null; echo $?", "1",
           ("--cap-drop", "CHOWN"))  # fmt: skip
box_prints("security.no_mount", "mount is refused", "mount -t tmpfs none /mnt 2>/dev/null || mount -t tmpfs none /tmp 2>/dev/null; echo $?",
           "[^0].*")  # fmt: skip
box_prints(
    "security.no_sysctl", "/proc/sys is read-only", "echo x 2>/dev/null > /proc/sys/kernel/domainname; echo $?", "[12]"
)
box_prints("security.no_sysrq", "so is sysrq-trigger", "(echo h > /proc/sysrq-trigger) 2>/dev/null; echo $?", "[12]")
box_prints("security.sys_read_only", "/sys is read-only", "mkdir /sys/fs/x 2>/dev/null; echo $?", "1")
box_prints("security.masked_kcore", "/proc/kcore gives nothing", "head -c 16 /proc/kcore 2>/dev/null | wc -c", "0")
box_prints("security.masked_keys", "/proc/keys gives nothing", "cat /proc/keys 2>/dev/null | wc -c", "0")
box_prints("security.masked_firmware", "/sys/firmware shows nothing", "ls /sys/firmware 2>/dev/null | wc -l", "0")
box_prints("security.no_reboot", "reboot is refused", "reboot -f 2>/dev/null; echo still here", "still here")
box_prints("security.no_settime", "the clock cannot be set", "date -s 2001-01-01 >/dev/null 2>&1; date +%Y | grep -c 2001", "0",
           code=1)  # fmt: skip
box_prints("security.alone", "no process of another is seen", "ls -d /proc/[0-9]* | wc -l", "[1-6]")
box_prints("security.no_host_disks", "no disk of the host's", "ls /dev | grep -c -E '^(sd|vd|nvme|loop)'", "0", code=1)
box_prints(
    "security.kill_outside", "a process of nobody here cannot be signalled", "kill -0 99999 2>/dev/null; echo $?", "1"
)


def capabilities(chamber: Chamber, *flags: str) -> int:
    done = chamber.run(*flags, script="grep CapEff /proc/self/status")
    assert done.returncode == 0, done
    line = done.stdout
    return int(line.split()[1], 16)


@case("security.default_capabilities", "the default set: no SYS_ADMIN, no NET_ADMIN, no SYS_PTRACE, no NET_RAW")
def default_capabilities(chamber: Chamber) -> None:
    held = capabilities(chamber)
    assert held & 1 << 0, "CHOWN"
    assert not held & (1 << 21 | 1 << 12 | 1 << 19 | 1 << 13 | 1 << 16 | 1 << 22), hex(held)


@case("security.cap_add", "--cap-add")
def cap_add(chamber: Chamber) -> None:
    assert capabilities(chamber, "--cap-add", "SYS_NICE") & 1 << 23


@case("security.privileged", "--privileged holds more")
def privileged(chamber: Chamber) -> None:
    assert capabilities(chamber, "--privileged") & 1 << 21
