"""Prompts as embeddings: chunks, weights, injected vectors and the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sdbatch.errors import ConfigError
from sdbatch.families import FAMILIES, Encoder
from sdbatch.pipeline.clip import ClipEncoder
from sdbatch.pipeline.emphasis import emphasise
from sdbatch.pipeline.text import PromptEncoder, pad
from tests.pipeline.models import WIDTH, TinyModel

WORDS = {"style": torch.ones(3, WIDTH), "long": torch.full((70, WIDTH), 0.5)}


def clip_of(model: TinyModel, **changes: Any) -> ClipEncoder:
    encoder = Encoder("text_encoder", "tokenizer", **changes) if changes else FAMILIES["sd1"].encoders[0]
    return ClipEncoder(model.pipeline.text_encoder, model.pipeline.tokenizer, encoder, WORDS)


@pytest.fixture
def encoder(model: TinyModel) -> Iterator[PromptEncoder]:
    encoder = PromptEncoder([clip_of(model)], tuple(WORDS))
    with torch.inference_mode():
        yield encoder
    encoder.detach()


def chunks(embedding: torch.Tensor) -> int:
    assert embedding.shape[0] % 77 == 0
    return embedding.shape[0] // 77


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("", 1),
        ("cat " * 75, 1),
        ("cat " * 76, 2),
        ("cat BREAK dog", 2),
        ("cat BREAK " + "dog " * 76, 3),
        ("cat " * 72 + "style", 1),
        ("cat " * 73 + "style", 2),
        ("cat " * 6 + "long", 2),
    ],
)
def test_chunks_of_75_tokens(prompt: str, count: int, encoder: PromptEncoder) -> None:
    assert chunks(encoder.encode(prompt, 1).tokens_TD) == count


def test_each_chunk_is_what_its_text_gives_alone(encoder: PromptEncoder) -> None:
    both = encoder.encode("red cat BREAK blue dog", 1).tokens_TD
    for row, text in enumerate(("red cat", "blue dog")):
        torch.testing.assert_close(both[77 * row : 77 * (row + 1)], encoder.encode(text, 1).tokens_TD, rtol=1e-4, atol=1e-5)


def test_padding_is_whole_empty_chunks(encoder: PromptEncoder) -> None:
    short, empty = encoder.encode("cat", 1), encoder.encode("", 1)
    padded = pad(short, 2 * 77, lambda: empty).tokens_TD
    assert torch.equal(padded[:77], short.tokens_TD)
    assert torch.equal(padded[77:], empty.tokens_TD)


def test_weights_scale_their_tokens(encoder: PromptEncoder) -> None:
    plain, heavy = encoder.encode("red cat", 1).tokens_TD, encoder.encode("red (cat:1.5)", 1).tokens_TD
    ratio = (heavy / plain).mean(dim=1)
    torch.testing.assert_close(ratio[2] / ratio[1], torch.tensor(1.5), rtol=1e-3, atol=0)


def test_weights_keep_the_mean_of_each_chunk() -> None:
    hidden = torch.randn(2, 77, WIDTH, generator=torch.Generator().manual_seed(0)) - 0.2
    weights = torch.ones(2, 77)
    weights[:, 5:9] = torch.tensor([[1.5], [0.6]])
    after = emphasise(hidden, weights)
    torch.testing.assert_close(after.mean(dim=(1, 2)), hidden.mean(dim=(1, 2)), rtol=1e-4, atol=0)


def test_weights_of_one_change_no_bit(encoder: PromptEncoder) -> None:
    assert torch.equal(encoder.encode("red (cat:1.0)", 1).tokens_TD, encoder.encode("red cat", 1).tokens_TD)
    hidden = torch.randn(2, 77, WIDTH)
    weights = torch.ones(2, 77)
    weights[1, 3] = 1.4
    assert torch.equal(emphasise(hidden, weights)[0], hidden[0])


def test_a_mean_of_nothing_is_not_restored() -> None:
    hidden = torch.randn(1, 77, WIDTH)
    hidden -= hidden.mean()
    weights = torch.ones(1, 77)
    weights[0, 5] = 1.4
    assert torch.equal(emphasise(hidden, weights), hidden * weights[..., None])


def test_each_prompt_is_encoded_once(encoder: PromptEncoder) -> None:
    first = encoder.encode("a red cat", 1).tokens_TD
    assert encoder.encode("a red cat", 1).tokens_TD is first
    assert encoder.encode("a red cat", 2).tokens_TD is not first
    assert encoder.encode("a red cat", 1, (0.5,)).tokens_TD is not first
    encoder.forget()
    assert encoder.encode("a red cat", 1).tokens_TD is not first


def test_the_cache_is_bounded(encoder: PromptEncoder) -> None:
    for index in range(530):
        encoder.encode(f"{index}", 1)
    assert len(encoder._cache) == 512  # pyright: ignore[reportPrivateUsage]


def test_clip_skip_beyond_the_layers(encoder: PromptEncoder) -> None:
    with pytest.raises(ConfigError, match=r"clip_skip: 4 asked, the text encoder has 3 layers\. Choose 1 to 3"):
        encoder.encode("cat", 4)


def test_injection_leaves_no_trace(encoder: PromptEncoder, model: TinyModel) -> None:
    before = encoder.encode("red cat", 1).tokens_TD.clone()
    words = len(model.pipeline.tokenizer)
    encoder.encode("a style cat", 1)
    encoder.forget()
    assert torch.equal(encoder.encode("red cat", 1).tokens_TD, before)
    assert len(model.pipeline.tokenizer) == words
