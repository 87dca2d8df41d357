# Sourced by prepare: the virtual environments, the product in them, and the commands. Bash.
# shellcheck shell=bash disable=SC2154

# An environment is made under a name that holds the digest of its locks and of the interpreter, and a link is turned
# to it when it is whole: a failed installation leaves the old one in use, and daemons keep their modules until restarted.
install_run_venv() {
    make_venv "$venv" "$(digest_of requirements/run.lock)" "" requirements/run.lock
}

install_test_venv() {
    make_venv "$test_venv" "$(digest_of requirements/build.lock requirements/dev.lock)" requirements/build.lock requirements/dev.lock
}

# make_venv LINK DIGEST BUILD_LOCK LOCK
make_venv() {
    local link=$1 folder=$1-$2 build_lock=$3 lock=$4
    [ "$(readlink "$link" 2>/dev/null)" != "$(basename "$folder")" ] || return 0
    step "Python packages of $lock into $link"
    rm -rf "$folder"
    /usr/bin/python3 -m venv "$folder" || fail "python3 -m venv $folder failed" "apt-get install --reinstall python3-venv"
    if [ -n "$build_lock" ]; then
        pip_install "$folder" --only-binary :all: --require-hashes -r "$checkout/$build_lock"
    fi
    pip_install "$folder" --only-binary :all: --no-binary forbiddenfruit --no-build-isolation --require-hashes -r "$checkout/$lock"
    # Daemons that run keep the one before until they are restarted; those before it go.
    local old other
    old=$(readlink -f "$link" 2>/dev/null || true)
    ln -sfn "$(basename "$folder")" "$link.new"
    mv -T "$link.new" "$link"
    for other in "$link"-*; do
        [ "$other" = "$folder" ] || [ "$other" = "$old" ] || rm -rf "$other"
    done
}

# pip as the machine has it set up (index, mirrors, certificates), three attempts.
pip_install() {
    local folder=$1 attempt
    shift
    for attempt in 1 2 3; do
        ! env -u PIP_TARGET -u PIP_PREFIX -u PIP_USER -u PIP_REQUIRE_VIRTUALENV "$folder/bin/python" -m pip install --quiet --no-input \
            --disable-pip-version-check --root-user-action=ignore --progress-bar=off "$@" \
            </dev/null >>"$logs/prepare.log" 2>&1 9>&- || return 0
        step "pip failed (attempt $attempt of 3)"
        sleep $((attempt * 3))
    done
    tail -n 25 "$logs/prepare.log" >&2
    fail "pip could not install: $* (its words are above, and in $logs/prepare.log)" "check the network and pip's configuration (pip config list); then run the same command again"
}

# The package itself, when the checkout differs from what is installed, and the commands that start it.
install_product() {
    local digest stamp=$venv/casemate.digest
    digest=$(product_digest)
    [ "$(cat "$stamp" 2>/dev/null)" != "$digest" ] || return 0
    step "the package casemate from $checkout into $venv"
    rm -f "$stamp"
    # No index and no build isolation: nothing may come from outside here; flit_core stands in run.lock.
    pip_install "$(readlink -f "$venv")" --no-index --no-deps --no-build-isolation --force-reinstall "$checkout"
    local site name
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for name in casemate casemated casemate-hostd casemate-image-verifier; do
        sed -e "s|@SITE@|$site|" -e "s|@VENV@|$venv|" "$checkout/packaging/launchers/$name.in" >"$commands/.$name.new"
        chmod 0755 "$commands/.$name.new"
        mv "$commands/.$name.new" "$commands/$name"
    done
    install -D -m 0755 "$checkout/packaging/supervise" "$prefix/libexec/supervise"
    install_completion
    echo "$digest" >"$stamp"
}

install_completion() {
    local shell file
    while read -r shell file; do
        install -d -m 0755 "$(dirname "$file")"
        if "$commands/casemate" completion "$shell" >"$file.new" 2>>"$logs/prepare.log"; then
            mv "$file.new" "$file"
        else
            step "no completion for $shell (see $logs/prepare.log)"
            rm -f "$file.new"
        fi
    done <<'FILES'
bash /usr/local/share/bash-completion/completions/casemate
zsh /usr/local/share/zsh/site-functions/_casemate
fish /usr/local/share/fish/vendor_completions.d/casemate.fish
FILES
}

product_digest() {
    (cd "$checkout" && find src packaging pyproject.toml -type f ! -name '*.pyc' ! -path '*/.*_cache/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-64)
}

# Twelve digits that stand for these locks and this interpreter.
digest_of() { (cd "$checkout" && { cat "$@"; /usr/bin/python3 -VV; } | sha256sum | cut -c 1-12); }
