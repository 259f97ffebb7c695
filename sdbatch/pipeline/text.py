"""Turns prompts into what the denoiser is told. Always ours, so that every family and trap is one code.

Each distinct prompt is encoded once, alone, so that its embedding does not depend on what else is in the batch.

Shapes: T tokens, D width of all text encoders side by side, P width of the prompt's summary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sdbatch.families import Encoder
from sdbatch.pipeline.prompt import Span, parse_prompt
from sdbatch.pipeline.prompt_editing import prompt_by_step

_CACHE_PROMPTS = 512

Strengths = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Embedding:
    """What one prompt tells the denoiser."""

    tokens_TD: Tensor
    pooled_P: Tensor | None = None
    """The summary of the whole prompt, in families that have one."""

    @property
    def length(self) -> int:
        """In tokens."""
        return self.tokens_TD.shape[0]


@dataclass(frozen=True, slots=True)
class Guide:
    """What the two prompts of an image tell the denoiser at a step."""

    positive: Embedding
    negative: Embedding | None
    """As long as the positive one; None where the network takes the guidance scale as an input."""


class Tower(Protocol):
    """One text encoder of a family (`ClipEncoder`, `T5Encoder`)."""

    @property
    def encoder(self) -> Encoder:
        """Its place in the family."""
        ...

    def encode(self, spans: Sequence[Span], clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """The tokens [T, C] and the summary [P] of a prompt."""
        ...

    def detach(self) -> None:
        """Leave the module as it was."""
        ...


class PromptEncoder:
    """All text encoders of a model.

    Args:
        towers: Its text encoders, in the family's order.
        words: The names of the embeddings that prompts may call.
        zero_empty: An empty negative prompt is zeros instead of the embedding of no words.
    """

    def __init__(self, towers: Sequence[Tower], words: Sequence[str] = (), *, zero_empty: bool = False) -> None:
        self.towers = towers
        self.words = words
        self.zero_empty = zero_empty
        self._cache: OrderedDict[Hashable, Embedding] = OrderedDict()

    def guide(
        self, prompt: str, negative_prompt: str | None, passes: Sequence[int], clip_skip: int, strengths: Strengths = ()
    ) -> tuple[Guide, ...]:
        """What is told at each step of an image, all of one length; steps that are told the same have the same object.

        Args:
            prompt: In A1111's grammar, changes on the way included.
            negative_prompt: None where the network takes the guidance scale as an input.
            passes: Steps that are run, of each pass.
            clip_skip: As in `encode`.
            strengths: As in `encode`.
        """
        pairs = list(zip(prompt_by_step(prompt, *passes), prompt_by_step(negative_prompt or "", *passes), strict=True))
        sides = (self.encode,) if negative_prompt is None else (self.encode, self.encode_negative)
        told = {
            pair: [encode(text, clip_skip, strengths) for encode, text in zip(sides, pair, strict=False)] for pair in dict.fromkeys(pairs)
        }
        longest = max(embedding.length for embeddings in told.values() for embedding in embeddings)
        guides: dict[tuple[str, str], Guide] = {}
        for pair, embeddings in told.items():
            filled = [
                pad(embedding, longest, lambda encode=encode: encode("", clip_skip, strengths))
                for encode, embedding in zip(sides, embeddings, strict=True)
            ]
            guides[pair] = Guide(filled[0], filled[1] if len(filled) > 1 else None)
        return tuple(guides[pair] for pair in pairs)

    def encode(self, prompt: str, clip_skip: int, strengths: Strengths = ()) -> Embedding:
        """The embedding of a prompt, from the cache when it was encoded before.

        Args:
            prompt: In A1111's grammar.
            clip_skip: 1 is the last layer of a CLIP, 2 the one before.
            strengths: Those of the LoRAs on the text encoders, as set now: part of the cache's key.

        Raises:
            ConfigError: clip_skip is deeper than a text encoder.
        """
        key = (prompt, clip_skip, strengths)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        embedding = self._cache[key] = self._encode(prompt, clip_skip)
        if len(self._cache) > _CACHE_PROMPTS:
            self._cache.popitem(last=False)
        return embedding

    def encode_negative(self, prompt: str, clip_skip: int, strengths: Strengths = ()) -> Embedding:
        """The embedding of a negative prompt."""
        embedding = self.encode(prompt, clip_skip, strengths)
        if prompt or not self.zero_empty:
            return embedding
        pooled = embedding.pooled_P
        return Embedding(torch.zeros_like(embedding.tokens_TD), None if pooled is None else torch.zeros_like(pooled))

    def forget(self) -> None:
        """Empty the cache, as a text encoder is about to give other answers."""
        self._cache.clear()

    def detach(self) -> None:
        """Leave the text encoders as they were."""
        for tower in self.towers:
            tower.detach()

    def _encode(self, prompt: str, clip_skip: int) -> Embedding:
        spans = parse_prompt(prompt, self.words)
        answers = [(tower, *tower.encode(spans, clip_skip)) for tower in self.towers]
        contexts = [(tower, tokens) for tower, tokens, _ in answers if tower.encoder.context]
        longest = max(tokens.shape[0] for _, tokens in contexts)
        filled = [fill(tokens, longest, lambda tower=tower: tower.encode((), clip_skip)[0]) for tower, tokens in contexts]
        pooled = next((summary for _, _, summary in answers if summary is not None), None)
        return Embedding(filled[0] if len(filled) == 1 else torch.cat(filled, dim=-1), pooled)


def pad(embedding: Embedding, tokens: int, empty: Callable[[], Embedding]) -> Embedding:
    """The embedding with those of empty prompts after it, until it has that many tokens."""
    return Embedding(fill(embedding.tokens_TD, tokens, lambda: empty().tokens_TD), embedding.pooled_P)


def fill(tokens_TD: Tensor, length: int, empty: Callable[[], Tensor]) -> Tensor:
    """Tokens with whole empty chunks after them, up to a length."""
    if tokens_TD.shape[0] == length:
        return tokens_TD
    chunk = empty()
    return torch.cat([tokens_TD] + [chunk] * ((length - tokens_TD.shape[0]) // chunk.shape[0]))
