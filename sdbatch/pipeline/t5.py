"""T5, FLUX's second text encoder: the whole prompt at once, filled up to the length the model was trained with.

Shapes: T tokens, C width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.families import Encoder
from sdbatch.pipeline.emphasis import emphasise
from sdbatch.pipeline.prompt import Span


class T5Encoder:
    """T5's encoder and its tokenizer.

    Args:
        module: The encoder of transformers.
        tokenizer: Its tokenizer.
        encoder: Its place in the family.
        tokens: The least length of an embedding; longer prompts are longer.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, encoder: Encoder, tokens: int) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.tokens = tokens

    def detach(self) -> None:
        """Nothing is attached to the module."""

    def encode(self, spans: Sequence[Span], clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """The tokens [T, C] of a prompt; BREAK and names of embeddings mean nothing here. Never a summary."""
        del clip_skip
        ids: list[int] = []
        weights: list[float] = []
        for span in (span for span in spans if span.kind == "text"):
            pieces: list[int] = self.tokenizer(span.text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
            ids += pieces
            weights += [span.weight] * len(pieces)
        ids.append(int(self.tokenizer.eos_token_id))
        filling = max(0, self.tokens - len(ids))
        ids += [int(self.tokenizer.pad_token_id)] * filling
        device = next(self.module.parameters()).device
        hidden: Tensor = self.module(torch.tensor([ids], device=device)).last_hidden_state
        if any(weight != 1.0 for weight in weights):
            padded = torch.tensor([[*weights, *[1.0] * (len(ids) - len(weights))]], device=device)
            hidden = emphasise(hidden, padded.to(hidden.dtype))
        return hidden[0], None
