"""What the signs of a prompt mean: `(word:1.2)`, `((word))`, `[word]`, `\\(`, `BREAK`, and names of embeddings.

The grammar is A1111's, as users write it: `(...)` times 1.1, `[...]` divided by 1.1, `(...:w)` times w, a backslash
takes the next bracket as it is, `BREAK` ends the chunk of tokens. Brackets that never close reach to the end.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_STEP = 1.1
_TOKEN = re.compile(r"\\[()\[\]\\]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[()\[\]]|\bBREAK\b|[^()\[\]\\:B]+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a prompt with one weight."""

    text: str
    weight: float
    kind: str = "text"
    """`text`, `embedding` (the text is its name) or `break`."""


def parse_prompt(prompt: str, embeddings: Collection[str] = ()) -> list[Span]:
    """The prompt as spans in order, embeddings' names taken out of the text.

    As in A1111 the case of a name does not matter; as in ComfyUI `embedding:` may stand before it, and the file's ending after.
    """
    spans = _merge(_parse_weights(prompt))
    if not embeddings:
        return spans
    names = "|".join(re.escape(name) for name in sorted(embeddings, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:embedding:)?({names})(?:\.(?:safetensors|pt|bin))?(?!\w)", re.IGNORECASE)
    spelling = {name.lower(): name for name in embeddings} | {name: name for name in embeddings}
    return [piece for span in spans for piece in _split_embeddings(span, pattern, spelling)]


def _parse_weights(prompt: str) -> list[Span]:
    spans: list[Span] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for found in _TOKEN.finditer(prompt):
        token = found.group()
        bracket, factor = _closes(token)
        if token in opened:
            opened[token].append(len(spans))
        elif opened.get(bracket):
            _scale(spans, opened[bracket].pop(), factor)
        elif token == "BREAK":
            spans.append(Span("", 1.0, "break"))
        else:
            is_escape = token.startswith("\\") and len(token) == 2
            spans.append(Span(token[1:] if is_escape else token, 1.0))
    for bracket, factor in (("(", _STEP), ("[", 1 / _STEP)):
        for start in opened[bracket]:
            _scale(spans, start, factor)
    return spans


def _closes(token: str) -> tuple[str, float]:
    """The bracket that a token closes and the weight it gives; an empty bracket for any other token."""
    match token:
        case ")":
            return "(", _STEP
        case "]":
            return "[", 1 / _STEP
        case _ if token.startswith(":") and token.endswith(")"):
            return "(", float(token[1:-1])
        case _:
            return "", 1.0


def _scale(spans: list[Span], start: int, factor: float) -> None:
    spans[start:] = [Span(span.text, span.weight * factor, span.kind) for span in spans[start:]]


def _merge(spans: list[Span]) -> list[Span]:
    """Neighbouring texts of one weight as one, so that a plain prompt reaches the tokenizer whole."""
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].kind == span.kind == "text" and merged[-1].weight == span.weight:
            merged[-1] = Span(merged[-1].text + span.text, span.weight)
        else:
            merged.append(span)
    return merged


def _split_embeddings(span: Span, pattern: re.Pattern[str], spelling: Mapping[str, str]) -> list[Span]:
    if span.kind != "text":
        return [span]
    pieces: list[Span] = []
    for index, piece in enumerate(pattern.split(span.text)):
        if index % 2:
            name = spelling.get(piece) or spelling[piece.lower()]
            pieces.append(Span(name, span.weight, "embedding"))
        elif piece.strip():
            pieces.append(Span(piece, span.weight))
    return pieces
