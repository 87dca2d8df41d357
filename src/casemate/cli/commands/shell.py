"""``completion`` and ``help``."""

from __future__ import annotations

from casemate.cli.fail import bad_value
from casemate.cli.flags import Arguments, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.cli.context import Context

_BASH = r"""# bash completion for casemate; for good: casemate completion bash > /etc/bash_completion.d/casemate
_casemate() {
    local line word typed="${COMP_WORDS[COMP_CWORD]}" words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    COMPREPLY=()
    while IFS= read -r line; do
        word="${line%%$'\t'*}"
        if [[ $word == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$typed")
        else
            COMPREPLY+=("$word")
        fi
    done < <(casemate __complete "${words[@]}" 2>/dev/null)
    # bash splits words at : and =; what is typed already must not be offered again.
    if [[ $(type -t __ltrim_colon_completions) == function ]]; then __ltrim_colon_completions "$typed"; fi
}
complete -F _casemate casemate
"""

_ZSH = r"""#compdef casemate
# zsh completion for casemate; for good: casemate completion zsh > "${fpath[1]}/_casemate"
_casemate() {
    local line word text
    local -a offers
    while IFS= read -r line; do
        word="${line%%$'\t'*}"
        text="${line#*$'\t'}"
        if [[ $word == :files ]]; then
            _files
        elif [[ $text == $line || -z $text ]]; then
            offers+=("${word//:/\\:}")
        else
            offers+=("${word//:/\\:}:$text")
        fi
    done < <(casemate __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( ${#offers} )) && _describe 'casemate' offers
}
if [[ $funcstack[1] == _casemate ]]; then _casemate "$@"; else compdef _casemate casemate; fi
"""

_FISH = r"""# fish completion for casemate
# for good: casemate completion fish > ~/.config/fish/completions/casemate.fish
function __casemate_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (casemate __complete $words[2..-1] 2>/dev/null)
        if test "$line" = ":files"
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c casemate -f -a '(__casemate_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(arguments: Arguments, context: Context) -> int:
    shell = arguments.words[0]
    if shell not in SCRIPTS:
        raise bad_value("casemate completion", shell, "bash, zsh or fish")
    if context.json:
        context.answer({"shell": shell, "script": SCRIPTS[shell]})
    else:
        context.write(SCRIPTS[shell])
    return 0


def help_(arguments: Arguments, context: Context) -> int:
    from casemate.cli.help import group_or_unknown, overview, page
    from casemate.cli.index import find, load

    if not arguments.words:
        text = overview()
    else:
        path, rest = find(arguments.words)
        text = page(path, load(path)) if path is not None and not rest else group_or_unknown(arguments.words)
    if context.json:
        context.answer({"help": text})
    else:
        context.write(text)
    return 0


COMPLETION = Command(
    "bash|zsh|fish",
    completion,
    (),
    1,
    1,
    ("bash,zsh,fish",),
    "Names of containers, images, pods and volumes are completed too.",
    ("source <(casemate completion bash)", "casemate completion fish > ~/.config/fish/completions/casemate.fish"),
)
HELP = Command("[COMMAND]", help_, (), 0, 2)
