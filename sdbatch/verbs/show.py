"""`--help`, `--cfg`, `--info` and shell completion."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path

from sdbatch.cli import VERBS
from sdbatch.config.arguments import Arguments
from sdbatch.config.compose import LAUNCHER, Composer
from sdbatch.config.manual import Key, group_keys, launcher_keys, plain_keys
from sdbatch.config.search import PACKAGED
from sdbatch.errors import ConfigError, did_you_mean

USAGE = """\
sdbatch turns Stable Diffusion sweeps into configuration.

  sdbatch prompt="a red fox" seed=3                       one image
  sdbatch lora=style_a,style_b 'seed=range(0,4)' -m       a sweep: one job per LoRA, four seeds each
  sdbatch 'lora=[style_a,style_b]' lora.style_a.weight=0,0.5,1 -m      a stack of two, three strengths
  sdbatch plan ...                                        the same, shown but not run
"""

FOOT = """\
`sdbatch VERB --help` tells of a verb, `sdbatch --cfg job` prints the composed configuration.
Complete options in bash or zsh: eval "$(sdbatch -sc install=bash)"; in fish: sdbatch -sc install=fish | source
"""


def show(asked: Arguments) -> int:
    """Answer; nothing is planned or run. Returns the exit code."""
    if asked.help:
        composer = Composer(asked.config_name, asked.config_dir, [word for word in asked.overrides if "=" in word])
        groups = [word for word in asked.overrides if "=" not in word]
        keys = [word for word in asked.overrides if "=" in word]
        sys.stdout.write("".join(_group_help(composer, group) for group in groups) or _help(composer, keys))
        return 0
    if asked.completion:
        from sdbatch.verbs.completion import completion

        sys.stdout.write(completion(asked.overrides))
        return 0
    composer = Composer(asked.config_name, asked.config_dir, asked.overrides)
    # Composing first gives our own message for a wrong key, in place of Hydra's.
    hydra = Hydra.create_main_hydra2("sdbatch", create_automatic_config_search_path(None, None, PACKAGED))
    overrides = list(asked.overrides)
    if asked.show:
        composer.compose(overrides)
        hydra.show_cfg(asked.config_name, overrides, cfg_type=asked.show, package=asked.package, resolve=asked.resolve)
    elif asked.info:
        logging.raiseExceptions = False  # Hydra logs it, and a reader such as `head` may have left
        hydra.show_info(asked.info, config_name=asked.config_name, overrides=overrides)
    return 0


def _help(composer: Composer, overrides: list[str]) -> str:
    lines = [USAGE, "Verbs (the first word; run when left out):"]
    lines += [f"  {verb:<9} {what}" for verb, what in VERBS.items()]
    lines += ["", "Groups (GROUP=OPTION; `sdbatch --help GROUP` tells more of each option):"]
    for group in [*composer.groups(), LAUNCHER]:
        options = [option for option in composer.options(group) if option not in ("none", "default")]
        shown = ", ".join(options[:8]) + (f", ... ({len(options)})" if len(options) > 8 else "")
        lines.append(f"  {group:<15} {shown or f'none yet; yours are conf/{group}/NAME.yaml'}")
    plain = composer.compose(overrides).plain
    lines += ["", "Keys (as they are set now), and those of groups, such as lora.style_a.weight=0.5:"]
    lines += _key_lines([key._replace(default=_spelled(plain[key.path])) for key in plain_keys()])
    jobs = ", ".join(job for job in composer.jobs() if job != "config")
    return "\n".join([*lines, "", f"Jobs (`sdbatch -cn JOB`; your own with `-cd FOLDER -cn JOB`): {jobs}", "", FOOT])


def _spelled(value: object) -> str:
    return "null" if value is None else str(value)


def _key_lines(keys: Sequence[Key]) -> list[str]:
    width = max((len(key.path) + len(key.default) for key in keys), default=0) + 1
    return [f"  {f'{key.path}={key.default}'.ljust(width)}  {key.about}".rstrip() for key in keys]


def _group_help(composer: Composer, group: str) -> str:
    if not composer.is_group(group):
        raise ConfigError(f"--help {group}: there is no such group. {did_you_mean(group, composer.groups())}")
    lines = [f"{group}:"]
    for option in composer.options(group):
        lines.append(f"  {option:<26} {_first_line(composer, group, option)}".rstrip())
    told = launcher_keys() if group == LAUNCHER else {"": group_keys(group)}
    for option, keys in told.items():
        lines += ["", f"{group}={option}:" if option else "Keys:", *_key_lines(keys)] if keys else []
    return "\n".join(lines) + "\n"


def _first_line(composer: Composer, group: str, option: str) -> str:
    """The comment that opens an option's YAML; of a file: where it is."""
    for source in composer.loader.repository.get_sources():
        path = source.path.removeprefix("file://") if source.scheme() == "file" else None
        text = _yaml_text(path, group, option) if path is not None else _packaged_text(source.path, group, option)
        for line in (text or "").splitlines():
            if line.startswith("#") and not line.startswith("# @package"):
                return line.lstrip("# ").strip()
    try:
        return str(composer.catalog.options(group).get(option, ""))
    except ConfigError:
        return ""


def _yaml_text(folder: str, group: str, option: str) -> str | None:
    path = Path(folder) / group / f"{option}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _packaged_text(module: str, group: str, option: str) -> str | None:
    if module != "sdbatch.conf":
        return None
    path = files(module).joinpath(*group.split("/"), f"{option}.yaml")
    return path.read_text(encoding="utf-8") if path.is_file() else None
