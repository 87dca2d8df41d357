# Sourced by prepare: the two C programs of the micro-VMs, built from the checkout when they differ from it. Bash.
# shellcheck shell=bash disable=SC2154

# casemate-vm is a command of its own too: Docker, Podman and containerd take it as their OCI runtime. The agent is put
# into each guest kernel's initramfs; a kernel with another agent is prepared anew by the demo, or by hand.
install_guest_programs() {
    local digest stamp=$prefix/libexec/guest-programs.digest folder
    digest=$(cd "$checkout" && find guest shim -type f ! -path '*/tests/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-64)
    [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ] || return 0
    step "casemate-vm and the guest's agent"
    folder=$(mktemp -d)
    local part
    for part in guest shim; do
        make -s -C "$checkout/$part" BUILD="$folder/$part" >>"$logs/prepare.log" 2>&1 ||
            { tail -n 25 "$logs/prepare.log" >&2; rm -rf "$folder"; fail "make -C $part failed (its words are above, and in $logs/prepare.log)" "apt-get install gcc libc6-dev make"; }
    done
    # By another name first: a program that runs cannot be written to.
    install -D -m 0755 "$folder/guest/agent" "$prefix/libexec/.casemate-agent.new"
    install -D -m 0755 "$folder/shim/casemate-vm" "$prefix/libexec/.casemate-vm.new"
    mv "$prefix/libexec/.casemate-agent.new" "$prefix/libexec/casemate-agent"
    mv "$prefix/libexec/.casemate-vm.new" "$prefix/libexec/casemate-vm"
    ln -sfn "$prefix/libexec/casemate-vm" "$commands/casemate-vm"
    rm -rf "$folder"
    echo "$digest" >"$stamp"
}
