"""One CLIP text encoder: prompts in chunks of 75 tokens, weights, and embeddings by name.

Shapes: N chunks, T = 77 tokens of a chunk, C width of the text encoder, P width of its summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.errors import ConfigError
from sdbatch.families import Encoder
from sdbatch.families.base import CHUNK_TOKENS
from sdbatch.pipeline.emphasis import emphasise
from sdbatch.pipeline.inject import Injector
from sdbatch.pipeline.prompt import Span

_FILLER = 0
"""The token in whose place a vector is injected. Not the end mark: the summary is read at the first of those."""


@dataclass(slots=True)
class _Chunk:
    """75 tokens in the making; a vector stands where an embedding is injected."""

    ids: list[int] = field(default_factory=list[int])
    weights: list[float] = field(default_factory=list[float])
    vectors: list[Tensor | None] = field(default_factory=list["Tensor | None"])


class ClipEncoder:
    """A CLIP text encoder and its tokenizer.

    Args:
        module: A CLIP text model of transformers, with or without a projection.
        tokenizer: Its tokenizer.
        encoder: Which of its layers are taken.
        embeddings: The vectors of each textual-inversion embedding by the word that calls it: [vectors, C].
    """

    def __init__(self, module: nn.Module, tokenizer: Any, encoder: Encoder, embeddings: Mapping[str, Tensor]) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.embeddings = dict(embeddings)
        table: Any = module.get_input_embeddings
        self._injector = Injector(table())

    def detach(self) -> None:
        """Take the hook off the module."""
        self._injector.detach()

    def encode(self, spans: Sequence[Span], clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """The tokens [N * T, C] of a prompt, and its summary [P] where the family wants one: that of the first chunk.

        Raises:
            ConfigError: clip_skip is deeper than the text encoder.
        """
        chunks = self._chunks(spans)
        device = self._injector.table.get_parameter("weight").device
        ids = torch.tensor([self._with_marks(chunk.ids) for chunk in chunks], device=device)
        places = [(row, 1 + at, v) for row, chunk in enumerate(chunks) for at, v in enumerate(chunk.vectors) if v is not None]
        layer = max(clip_skip - self.encoder.left_out, self.encoder.layer)
        with self._injector.inject(places):
            output = self.module(ids, output_hidden_states=layer > 1)
        hidden = self._layer(output, layer)
        if any(weight != 1.0 for chunk in chunks for weight in chunk.weights):
            weights = [[1.0, *chunk.weights, *[1.0] * (CHUNK_TOKENS + 1 - len(chunk.weights))] for chunk in chunks]
            hidden = emphasise(hidden, torch.tensor(weights, device=device).to(hidden.dtype))
        return hidden.flatten(0, 1), self._summary(output) if self.encoder.pooled else None

    def _layer(self, output: Any, layer: int) -> Tensor:
        if layer == 1:
            return output.last_hidden_state
        layers = len(output.hidden_states) - 1
        if not 1 <= layer <= layers:
            most = layers + self.encoder.left_out
            raise ConfigError(
                f"clip_skip: {layer + self.encoder.left_out} asked, the text encoder has {layers} layers. Choose 1 to {most}."
            )
        hidden: Tensor = output.hidden_states[-layer]
        if not self.encoder.final_norm:
            return hidden
        return self.module.get_submodule("final_layer_norm")(hidden)

    def _summary(self, output: Any) -> Tensor:
        pooled: Tensor = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
        return pooled[0]

    def _chunks(self, spans: Sequence[Span]) -> list[_Chunk]:
        chunks = [_Chunk()]
        for span in spans:
            if span.kind == "break":
                chunks.append(_Chunk())
                continue
            pieces = self._pieces(span)
            if span.kind == "embedding" and len(pieces) <= CHUNK_TOKENS < len(chunks[-1].ids) + len(pieces):
                chunks.append(_Chunk())  # the vectors of one word stay together
            for token, vector in pieces:
                if len(chunks[-1].ids) == CHUNK_TOKENS:
                    chunks.append(_Chunk())
                chunks[-1].ids.append(token)
                chunks[-1].weights.append(span.weight)
                chunks[-1].vectors.append(vector)
        return chunks

    def _pieces(self, span: Span) -> list[tuple[int, Tensor | None]]:
        if span.kind == "embedding" and span.text in self.embeddings:
            return [(_FILLER, vector) for vector in self.embeddings[span.text]]
        ids: list[int] = self.tokenizer(span.text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [(token, None) for token in ids]

    def _with_marks(self, ids: list[int]) -> list[int]:
        end, pad = int(self.tokenizer.eos_token_id), int(self.tokenizer.pad_token_id)
        return [int(self.tokenizer.bos_token_id), *ids, end, *[pad] * (CHUNK_TOKENS - len(ids))]
