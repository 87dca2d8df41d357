# Sourced by prepare: does this host have what nothing we install can give? Bash.
# shellcheck shell=bash

check_host() {
    [ "$(uname -s)" = Linux ] || fail "Casemate runs on Linux, and this is $(uname -s)" "use a Debian 12 machine, real or virtual"
    local machine
    machine=$(uname -m)
    [ "$machine" = x86_64 ] || fail "Casemate is made and tested for x86_64, and this machine is $machine" "use an x86_64 machine"
    { command -v apt-get && command -v dpkg-query; } >/dev/null ||
        fail "apt-get and dpkg-query are not here: this is not a Debian-like system" "use Debian 12, or install by hand as docs/how-to/install.md tells"
}

check_python() {
    /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "Casemate needs /usr/bin/python3 of version 3.11 or newer, and it is $(/usr/bin/python3 -V 2>&1 || true)" "use Debian 12 or newer"
}

check_kernel() {
    local filesystem
    for filesystem in overlay squashfs; do
        grep -qw "$filesystem" /proc/filesystems || modprobe "$filesystem" 2>/dev/null || true
        grep -qw "$filesystem" /proc/filesystems ||
            fail "the kernel $(uname -r) has no $filesystem file system, in which containers' layers are mounted" "use a kernel with CONFIG_${filesystem^^}_FS, such as Debian's; in a container, load the module on the host"
    done
    [ -e /dev/loop-control ] || modprobe loop 2>/dev/null || true
    [ -e /dev/loop-control ] || fail "there is no /dev/loop-control: layers cannot be mounted" "modprobe loop (CONFIG_BLK_DEV_LOOP); in a container, give it /dev/loop-control"
    unshare --user true 2>/dev/null ||
        fail "the kernel refuses user namespaces (user.max_user_namespaces is $(cat /proc/sys/user/max_user_namespaces 2>/dev/null || echo absent))" "sysctl user.max_user_namespaces=30000"
    nft list tables >/dev/null 2>&1 ||
        fail "the kernel refuses nftables to this process: pods cannot have a network" "use a kernel with CONFIG_NF_TABLES; in a container, give it CAP_NET_ADMIN"
    [ -e /sys/fs/cgroup/cgroup.controllers ] || [ -d /sys/fs/cgroup/memory ] ||
        fail "no cgroup hierarchy is mounted on /sys/fs/cgroup: limits cannot be held" "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
}
