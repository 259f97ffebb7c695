"""T5, FLUX's second text encoder: the whole prompt at once, filled up to the length the model was trained with.

Shapes: T tokens, C width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.families import Encoder
from sdbatch.pipeline.emphasis import emphasise
from sdbatch.pipeline.inject import Injector, Place
from sdbatch.pipeline.prompt import Span


class T5Encoder:
    """T5's encoder and its tokenizer.

    Args:
        module: The encoder of transformers.
        tokenizer: Its tokenizer.
        encoder: Its place in the family.
        tokens: The least length of an embedding; longer prompts are longer.
        embeddings: The vectors of each textual-inversion embedding by the word that calls it: [vectors, C]. A word that has none
            here, as it was made for CLIP alone, is not said to T5.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, encoder: Encoder, tokens: int, embeddings: Mapping[str, Tensor]) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.tokens = tokens
        self.embeddings = dict(embeddings)
        self._injector = Injector(module.get_submodule("encoder.embed_tokens"))

    def detach(self) -> None:
        """Take the hook off the module."""
        self._injector.detach()

    def encode(self, spans: Sequence[Span], clip_skip: int) -> tuple[Tensor, Tensor | None]:
        """The tokens [T, C] of a prompt; BREAK means nothing here. Never a summary."""
        del clip_skip
        ids: list[int] = []
        weights: list[float] = []
        places: list[Place] = []
        for span in spans:
            vectors = self.embeddings.get(span.text, ()) if span.kind == "embedding" else ()
            places += [(0, len(ids) + at, vector) for at, vector in enumerate(vectors)]
            pieces = self._read(span.text) if span.kind == "text" else [int(self.tokenizer.pad_token_id)] * len(vectors)
            ids += pieces
            weights += [span.weight] * len(pieces)
        ids.append(int(self.tokenizer.eos_token_id))
        filling = max(0, self.tokens - len(ids))
        ids += [int(self.tokenizer.pad_token_id)] * filling
        device = next(self.module.parameters()).device
        with self._injector.inject(places):
            hidden: Tensor = self.module(torch.tensor([ids], device=device)).last_hidden_state
        if any(weight != 1.0 for weight in weights):
            padded = torch.tensor([[*weights, *[1.0] * (len(ids) - len(weights))]], device=device)
            hidden = emphasise(hidden, padded.to(hidden.dtype))
        return hidden[0], None

    def _read(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
