# Sourced by the scripts beside it: where things are put, and how a step speaks. Bash.
# shellcheck shell=bash disable=SC2034

set -euo pipefail
umask 022
export LC_ALL=C.UTF-8 PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly checkout
readonly prefix=/opt/casemate           # virtual environments and the supervisor
readonly venv=$prefix/venv              # what runs the product: a link to venv-<digest>
readonly test_venv=$prefix/test-venv    # what runs the tests: a link to test-venv-<digest>
readonly commands=/usr/local/bin        # casemate, casemated, casemate-hostd, casemate-image-verifier
readonly settings=/etc/casemate/casemate.toml
readonly logs=/var/log/casemate
readonly account=casemate
readonly supervision=/run/casemate-supervise
readonly daemons=(casemate-hostd casemated)   # in the order of their start

# How casemated is started where systemd does not: what talks to the network holds no privilege. Another uid, no
# capability to keep or to gain, no setuid program; and TERM when the supervisor dies.
readonly unprivileged=(setpriv --pdeathsig TERM --reuid "$account" --regid "$account" --init-groups --no-new-privs
    --bounding-set=-all --inh-caps=-all --ambient-caps=-all)
# hostd keeps the capabilities of casemate-hostd.service, where each has its reason, and loses these. (A capability that
# the machine does not have cannot be kept by name, so the names are of those that go.)
# shellcheck disable=SC2054  # the commas are setpriv's
readonly privileged=(setpriv --pdeathsig TERM
    --bounding-set=-audit_control,-audit_read,-audit_write,-block_suspend,-bpf,-checkpoint_restore,-dac_read_search,-ipc_lock,-ipc_owner,-lease,-linux_immutable,-mac_admin,-mac_override,-net_broadcast,-net_raw,-perfmon,-sys_boot,-sys_module,-sys_nice,-sys_pacct,-sys_rawio,-sys_time,-sys_tty_config,-syslog,-wake_alarm)

# One line for each thing that is done; nothing for what is there already.
step() { printf 'casemate: %s\n' "$*"; }

# fail WHAT [REMEDY]: says both and ends the script.
fail() {
    printf 'casemate: error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'casemate: remedy: %s\n' "$2" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" -eq 0 ] || fail "this needs root (it installs packages and starts daemons), and runs as uid $(id -u)" "sudo make $1"
}

# True where systemd is the init (the test of sd_booted(3)).
systemd_runs() { [ -d /run/systemd/system ]; }
