"""Arguments of the small verbs: some positional words, then key=value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdbatch.errors import ConfigError, did_you_mean


def read_words(verb: str, arguments: Sequence[str], positional: Sequence[str], options: Mapping[str, str]) -> dict[str, str]:
    """Positional words by name and options by key, defaults filled in. Raises ConfigError with the verb's usage."""
    usage = f"Usage: sdbatch {verb} {' '.join(positional)} {' '.join(f'[{key}={value}]' for key, value in options.items())}".strip()
    found = dict(options)
    places = list(positional)
    for word in arguments:
        key, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            raise ConfigError(usage)
        if equals and key in options:
            found[key] = value
        elif options.get(word.removeprefix("--")) == "false" and word.startswith("--"):
            found[word.removeprefix("--")] = "true"
        elif equals and not places:
            raise ConfigError(f"{key}: no such option of {verb}. {did_you_mean(key, options)} {usage}")
        elif places:
            found[places.pop(0)] = word
        else:
            raise ConfigError(f"{word}: not understood. {usage}")
    if places:
        raise ConfigError(f"{places[0]} is missing. {usage}")
    return found
