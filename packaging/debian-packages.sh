# Sourced by prepare: installs the Debian packages of a list that are missing. Bash.
# shellcheck shell=bash disable=SC2154

service_policy=/usr/sbin/policy-rc.d
service_links=/etc

# install_debian_packages LIST
install_debian_packages() {
    local missing
    missing=$(missing_packages "$1")
    [ -n "$missing" ] || return 0
    step "Debian packages: $missing"
    local names attempt
    read -ra names <<<"$missing"
    for attempt in 1 2 3; do
        # The first attempt trusts the package lists that are there, unless they are absent or too old.
        if [ "$attempt" -gt 1 ] || ! apt_get install --simulate --no-install-recommends "${names[@]}"; then
            step "apt-get update"
            apt_get update || true
        fi
        ! apt_get install --yes --no-install-recommends --no-upgrade --no-remove "${names[@]}" || return 0
        step "apt-get failed (attempt $attempt of 3)"
        sleep $((attempt * 3))
    done
    tail -n 25 "$logs/prepare.log" >&2
    fail "apt-get could not install: $missing (its words are above, and in $logs/prepare.log)" "check the network, /etc/apt/sources.list and free space; then run the same command again"
}

# The packages of a list of which neither the program nor the package is there, on one line.
missing_packages() {
    local name program missing=()
    while read -r name program _; do
        case $name in '' | '#'*) continue ;; esac
        if [ "$program" != - ] && command -v "$program" >/dev/null; then continue; fi
        if is_installed "$name"; then continue; fi
        missing+=("$name")
    done <"$1"
    echo "${missing[*]}"
}

is_installed() { [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Another package manager at work is waited for; nothing is asked; what apt prints goes to the log.
apt_get() {
    install -d -m 0750 "$logs"
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get --quiet \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
        "$@" </dev/null >>"$logs/prepare.log" 2>&1 9>&-
}

# without_service_starts COMMAND...: Debian starts and enables a service when its package is installed. The services of
# the tests' peers (docker, docker-registry) are the user's affair: a policy-rc.d (Debian's own means for this) forbids
# the start, and what was enabled by the installation is disabled again. A policy-rc.d of the user's is left alone.
without_service_starts() {
    local policy=$service_policy ours=0 before after
    if [ ! -e "$policy" ]; then
        ours=1
        # shellcheck disable=SC2064  # the value of now is meant
        trap "rm -f '$policy'" EXIT
        printf '#!/bin/sh\n# Put here by Casemate for the time of one installation.\nexit 101\n' >"$policy"
        chmod 0755 "$policy"
    fi
    before=$(enabled_services)
    "$@"
    after=$(enabled_services)
    if [ $ours = 1 ]; then
        rm -f "$policy"
        trap - EXIT
    fi
    local link names=()
    for link in $(comm -13 <(echo "$before") <(echo "$after")); do
        case $link in
            */rc?.d/S??*) update-rc.d "${link##*/S??}" disable >>"$logs/prepare.log" 2>&1 || true ;;
            *) rm -f "$link" && names+=("${link##*/}") ;;
        esac
    done
    [ ${#names[@]} -eq 0 ] || step "left disabled: ${names[*]}"
    ! systemd_runs || systemctl daemon-reload
}

# The links that make a service start with the machine, systemd's and those of SysV init; systemd need not run.
enabled_services() {
    find "$service_links"/systemd/system "$service_links"/rc[2-5].d -type l \( -path '*.wants/*' -o -path '*/rc?.d/S*' \) 2>/dev/null | LC_ALL=C sort || true
}
