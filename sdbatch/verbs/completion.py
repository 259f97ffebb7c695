"""Shell completion: the scripts that shells load, and the candidates for a line that is being typed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module

from sdbatch.cli import COMPOSING, VERBS
from sdbatch.errors import ConfigError, did_you_mean
from sdbatch.verbs.words import Options

SCRIPTS = {
    "bash": """\
_sdbatch() {
    mapfile -t COMPREPLY < <(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT COMP_BREAKS=$COMP_WORDBREAKS "$1" -sc query=bash 2>/dev/null)
    [[ ${COMPREPLY[0]} == *[=.,[] ]] && compopt -o nospace
}
complete -o nosort -o bashdefault -o default -F _sdbatch sdbatch
""",
    "zsh": """\
_sdbatch() {
    local -a found
    found=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT]}" sdbatch -sc query=zsh 2>/dev/null)}")
    if [[ -z $found ]]; then _files; else compadd -Q -S '' -- $found; fi
}
compdef _sdbatch sdbatch
""",
    "fish": """\
function __sdbatch_complete
    set -l found (COMP_LINE=(commandline -cp) sdbatch -sc query=fish 2>/dev/null)
    if test (count $found) -eq 0
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c sdbatch -f -a '(__sdbatch_complete)'
""",
}
"""What a shell evaluates once."""


def completion(asked: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """The answer to `-sc install=SHELL` or `-sc query=SHELL`, of which shells call the second with the line in COMP_LINE."""
    action, _, shell = (asked[0] if asked else "").partition("=")
    if shell not in SCRIPTS or action not in ("install", "query"):
        raise ConfigError(f"-sc {' '.join(asked)}: give install=SHELL. {did_you_mean(shell, SCRIPTS)}")
    if action == "install":
        return SCRIPTS[shell]
    line = environment.get("COMP_LINE", "")
    words, quote = split_line(line[: int(environment.get("COMP_POINT", len(line)))])
    found = candidates(words[1:])
    if shell == "bash" and not quote:
        # bash replaces only what follows the last of these characters.
        kept = max((words[-1].rfind(char) for char in environment.get("COMP_BREAKS", "")), default=-1) + 1
        found = [text[kept:] for text in found]
    return "".join(f"{text}\n" for text in found)


def split_line(line: str) -> tuple[list[str], str]:
    """The words of a line up to the cursor, unquoted, the last of them unfinished; and the quote that is open there, or nothing."""
    words, quote, is_escaped = [""], "", False
    for char in line:
        if is_escaped:
            words[-1], is_escaped = words[-1] + char, False
        elif char == "\\" and quote != "'":
            is_escaped = True
        elif char == quote:
            quote = ""
        elif char in "\"'" and not quote:
            quote = char
        elif char.isspace() and not quote:
            words += [""] if words[-1] else []
        else:
            words[-1] += char
    return words, quote


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of the words after `sdbatch` could be."""
    from sdbatch.config.completion import complete

    *before, word = words or [""]
    if not before:
        return [*sorted(verb for verb in VERBS if verb.startswith(word)), *complete((), word)]
    verb = before[0]
    if verb not in VERBS:
        return complete(before, word)
    if verb in (*COMPOSING, "doctor", "pull"):
        return complete(before[1:], word)
    options: Options = getattr(import_module(f"sdbatch.verbs.{verb}"), "OPTIONS", {})
    offered = [f"--{key}" if option.default == "false" else f"{key}=" for key, option in options.items()]
    return [text for text in offered if text.startswith(word)] if word else []
