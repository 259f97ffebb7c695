"""Prompts that change on the way: `[from:to:when]`, `[to:when]`, `[from::when]` and `[a|b]`, in A1111's grammar.

`when` with a point is a share of the steps that are run, without one a number of them; `[a|b]` takes the next text at each
step. The second pass of a hires fix counts on: its shares go from 1 to 2, its steps come after those of the first. Brackets
inside of brackets work, those that never close are text, and `[word]` stays for `parse_prompt`.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WHEN = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*")
_SIGN = re.compile(r"\\.|[\[\]():|]", re.DOTALL)
_DEEPEST = 32
"""Brackets within brackets beyond this are text: nobody means them."""


@lru_cache(maxsize=512)
def prompt_by_step(prompt: str, *passes: int) -> tuple[str, ...]:
    """The prompt as it stands at each step of passes of so many."""
    if "[" not in prompt:
        return (prompt,) * sum(passes)
    return tuple(_at(prompt, step, passes[: number + 1], 0) for number, steps in enumerate(passes) for step in range(steps))


def _at(text: str, step: int, passes: tuple[int, ...], depth: int) -> str:
    """The text as it stands at a step of the last of these passes."""
    if depth == _DEEPEST:
        return text
    pieces: list[str] = []
    after = 0
    for start, end in _outermost(text):
        pieces += text[after:start], _choose(text[start + 1 : end], step, passes, depth + 1)
        after = end + 1
    return "".join(pieces) + text[after:]


def _choose(inside: str, step: int, passes: tuple[int, ...], depth: int) -> str:
    """What a bracket stands for at a step."""
    *texts, last = _split(inside, ":")
    if 1 <= len(texts) <= 2 and (when := _WHEN.fullmatch(last)):
        number = when.group(1)
        *before, steps = passes
        switch = int((float(number) - len(before)) * steps) if "." in number else int(number) - sum(before)
        first, then = ["", *texts][-2:]
        return _at(first if step < switch else then, step, passes, depth)
    choices = _split(inside, "|")
    if len(choices) > 1:
        return _at(choices[step % len(choices)], step, passes, depth)
    return f"[{_at(inside, step, passes, depth)}]"


def _outermost(text: str) -> list[tuple[int, int]]:
    """Where the brackets that lie in no other begin and end."""
    opened: list[int] = []
    pairs: list[tuple[int, int]] = []
    for found in _SIGN.finditer(text):
        if found.group() == "[":
            opened.append(found.start())
        elif found.group() == "]" and opened:
            start = opened.pop()
            while pairs and pairs[-1][0] > start:
                pairs.pop()
            pairs.append((start, found.start()))
    return pairs


def _split(text: str, sign: str) -> list[str]:
    """The text between signs that stand in no bracket."""
    pieces: list[str] = []
    depth = after = 0
    for found in _SIGN.finditer(text):
        match found.group():
            case "[" | "(":
                depth += 1
            case "]" | ")":
                depth = max(0, depth - 1)
            case mark if mark == sign and depth == 0:
                pieces.append(text[after : found.start()])
                after = found.end()
            case _:
                pass
    return [*pieces, text[after:]]
