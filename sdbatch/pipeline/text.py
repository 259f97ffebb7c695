"""Turns prompts into the embeddings that the UNet attends to. Always ours, so that every family and trap is one code.

A prompt is cut into chunks of 75 tokens, each with its begin and end marks; embeddings by name are injected into the
token embeddings by a hook, which leaves the tokenizer and the weights as they were. Each distinct prompt is encoded
once, alone, so that its embedding does not depend on what else is in the batch.

Shapes: N chunks, T = 77 tokens of a chunk, C width of the text encoder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.errors import ConfigError
from sdbatch.families import Family
from sdbatch.pipeline.prompt import Span, parse_prompt

_CACHE_PROMPTS = 512
_MEAN_FLOOR = 0.01
"""Below this share of the standard deviation a mean is noise, and to restore it would blow the embedding up."""


@dataclass(slots=True)
class _Chunk:
    """75 tokens in the making; a vector stands where an embedding is injected."""

    ids: list[int] = field(default_factory=list[int])
    weights: list[float] = field(default_factory=list[float])
    vectors: list[Tensor | None] = field(default_factory=list["Tensor | None"])


class TextEncoder:
    """The prompt encoder of one text encoder module.

    Args:
        module: A CLIP text model of transformers.
        tokenizer: Its tokenizer.
        family: For the length of a chunk and the deepest clip skip.
        embeddings: The vectors of each textual-inversion embedding by the word that calls it: [vectors, C].
    """

    def __init__(self, module: nn.Module, tokenizer: Any, family: Family, embeddings: Mapping[str, Tensor]) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.family = family
        self.embeddings = dict(embeddings)
        self._cache: OrderedDict[tuple[str, int, tuple[float, ...]], Tensor] = OrderedDict()
        self._inject: list[tuple[int, int, Tensor]] = []
        self._handle = self._token_embedding().register_forward_hook(self._replace_vectors)

    def encode(self, prompt: str, clip_skip: int, strengths: Sequence[float] = ()) -> Tensor:
        """The embedding of a prompt: [N * T, C], from the cache when it was encoded before.

        Args:
            prompt: In A1111's grammar.
            clip_skip: 1 is the last layer, 2 the one before; the final layer norm always follows.
            strengths: Those of the LoRAs on the text encoder, as set now: part of the cache's key.

        Raises:
            ConfigError: clip_skip is deeper than the text encoder.
        """
        key = (prompt, clip_skip, tuple(strengths))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        embedding = self._encode(prompt, clip_skip)
        self._cache[key] = embedding
        if len(self._cache) > _CACHE_PROMPTS:
            self._cache.popitem(last=False)
        return embedding

    def pad(self, embedding: Tensor, tokens: int, clip_skip: int, strengths: Sequence[float] = ()) -> Tensor:
        """The embedding with empty chunks after it, until it has that many tokens."""
        if embedding.shape[0] == tokens:
            return embedding
        empty = self.encode("", clip_skip, strengths)
        return torch.cat([embedding] + [empty] * ((tokens - embedding.shape[0]) // empty.shape[0]))

    def forget(self) -> None:
        """Empty the cache, as the text encoder is about to give other answers."""
        self._cache.clear()

    def detach(self) -> None:
        """Take the hook off the module."""
        self._handle.remove()

    def _encode(self, prompt: str, clip_skip: int) -> Tensor:
        chunks = self._chunks(parse_prompt(prompt, self.embeddings))
        device = self._token_embedding().get_parameter("weight").device
        ids = torch.tensor([self._with_marks(chunk.ids) for chunk in chunks], device=device)
        self._inject = [(row, 1 + at, v) for row, chunk in enumerate(chunks) for at, v in enumerate(chunk.vectors) if v is not None]
        try:
            output = self.module(ids, output_hidden_states=clip_skip > 1)
        finally:
            self._inject = []
        hidden = self._layer(output, clip_skip)
        if any(weight != 1.0 for chunk in chunks for weight in chunk.weights):
            tail = self.family.chunk_tokens + 1
            weights = torch.tensor([[1.0, *chunk.weights, *[1.0] * (tail - len(chunk.weights))] for chunk in chunks], device=device)
            hidden = emphasise(hidden, weights.to(hidden.dtype))
        return hidden.flatten(0, 1)

    def _layer(self, output: Any, clip_skip: int) -> Tensor:
        if clip_skip == 1:
            return output.last_hidden_state
        layers = len(output.hidden_states) - 1
        if not 1 <= clip_skip <= layers:
            raise ConfigError(f"clip_skip: {clip_skip} asked, the text encoder has {layers} layers. Choose 1 to {layers}.")
        norm: nn.Module = self.module.get_submodule("final_layer_norm")
        return norm(output.hidden_states[-clip_skip])

    def _chunks(self, spans: Sequence[Span]) -> list[_Chunk]:
        limit = self.family.chunk_tokens
        chunks = [_Chunk()]
        for span in spans:
            if span.kind == "break":
                chunks.append(_Chunk())
                continue
            pieces = self._pieces(span)
            if span.kind == "embedding" and len(pieces) <= limit < len(chunks[-1].ids) + len(pieces):
                chunks.append(_Chunk())  # the vectors of one word stay together
            for token, vector in pieces:
                if len(chunks[-1].ids) == limit:
                    chunks.append(_Chunk())
                chunks[-1].ids.append(token)
                chunks[-1].weights.append(span.weight)
                chunks[-1].vectors.append(vector)
        return chunks

    def _pieces(self, span: Span) -> list[tuple[int, Tensor | None]]:
        if span.kind == "embedding":
            filler = int(self.tokenizer.eos_token_id)
            return [(filler, vector) for vector in self.embeddings[span.text]]
        ids: list[int] = self.tokenizer(span.text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [(token, None) for token in ids]

    def _with_marks(self, ids: list[int]) -> list[int]:
        end, pad = int(self.tokenizer.eos_token_id), int(self.tokenizer.pad_token_id)
        return [int(self.tokenizer.bos_token_id), *ids, end, *[pad] * (self.family.chunk_tokens - len(ids))]

    def _token_embedding(self) -> nn.Module:
        find: Any = self.module.get_input_embeddings
        return find()

    def _replace_vectors(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, args
        if not self._inject:
            return output
        output = output.clone()
        for row, at, vector in self._inject:
            output[row, at] = vector.to(output)
        return output


def emphasise(hidden_NTC: Tensor, weights_NT: Tensor) -> Tensor:
    """Multiply each token's embedding by its weight, then restore the mean of each chunk that has a mean to restore.

    Source: A1111's emphasis "original". Chunks whose weights are all 1 come back unchanged, bit for bit.
    """
    weighted = hidden_NTC * weights_NT[..., None]
    before, after = hidden_NTC.mean(dim=(1, 2)), weighted.mean(dim=(1, 2))
    floor = _MEAN_FLOOR * hidden_NTC.std(dim=(1, 2))
    restore = (weights_NT != 1).any(dim=1) & (before.abs() > floor) & (after.abs() > floor) & (before * after > 0)
    ratio = torch.where(restore, before / torch.where(restore, after, torch.ones_like(after)), torch.ones_like(before))
    return weighted * ratio[:, None, None]
