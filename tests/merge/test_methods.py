"""Every method against its closed form, computed here in another way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdbatch.cell import Merge, WeightFile
from sdbatch.merge.method import CHUNK, FUNCTIONS, SAMPLE, Knobs, merge_tensors, seed_of
from sdbatch.merge.table import METHODS
from sdbatch.merge.weights import Weights, merged

FILE = WeightFile("other", "/other", "0" * 64)


def random(count: int, shape: Sequence[int] = (6, 5), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def run(method: str, tensors: list[Tensor], ratio: float, density: float = 0.5, seed: int = 3) -> Tensor:
    out = torch.empty_like(tensors[0])
    merge_tensors(FUNCTIONS[method], tensors, Knobs(ratio, density, seed), out)
    return out


def test_the_table_and_its_functions_name_the_same_methods() -> None:
    assert METHODS.keys() == FUNCTIONS.keys()


@given(ratio=st.floats(-2, 3), seed=st.integers(0, 99))
def test_weighted_sum(ratio: float, seed: int) -> None:
    a, b = random(2, seed=seed)
    torch.testing.assert_close(
        run("weighted_sum", [a, b], ratio), a.double().mul(1 - ratio).add(b.double() * ratio).float(), atol=3e-6, rtol=1e-5
    )


@pytest.mark.parametrize("method", ["weighted_sum", "slerp"])
def test_the_ends_are_the_sources_bit_for_bit(method: str) -> None:
    a, b = random(2)
    assert torch.equal(run(method, [a, b], 0.0), a)
    assert torch.equal(run(method, [a, b], 1.0), b)


def test_add_difference() -> None:
    a, b, c = random(3)
    torch.testing.assert_close(run("add_difference", [a, b, c], 0.7), a + 0.7 * (b - c))
    assert torch.equal(run("add_difference", [a, c, c], 0.7), a)


def test_slerp_keeps_length_and_turns_evenly() -> None:
    a, b = (tensor / tensor.norm() for tensor in random(2))
    whole = torch.arccos((a * b).sum())
    for ratio in (0.25, 0.5, 0.8):
        found = run("slerp", [a, b], ratio)
        assert float(found.norm()) == pytest.approx(1, abs=1e-5)
        assert float(torch.arccos((a * found).sum())) == pytest.approx(ratio * float(whole), abs=1e-4)


def test_slerp_of_parallel_and_of_zero_tensors_is_a_straight_line() -> None:
    a = random(1)[0]
    torch.testing.assert_close(run("slerp", [a, 2 * a], 0.5), 1.5 * a)
    zero = torch.zeros(3)
    torch.testing.assert_close(run("slerp", [zero, torch.ones(3)], 0.25), torch.full((3,), 0.25))


def ties_by_hand(a: np.ndarray, b: np.ndarray, c: np.ndarray, ratio: float, density: float) -> np.ndarray:
    """The paper's three steps, number by number, with the shares of mergekit's weights."""
    changes = [a - c, b - c]
    kept: list[np.ndarray] = []
    for change in changes:
        count = round(change.size * density)
        limit = np.sort(np.abs(change).ravel())[::-1][count - 1]
        kept.append(np.where(np.abs(change) >= limit, change, 0))
    out = c.copy()
    for index in np.ndindex(c.shape):
        votes = [(share, float(change[index])) for share, change in zip((1 - ratio, ratio), kept, strict=True)]
        sign = np.sign(sum(share * change for share, change in votes))
        agreeing = [(share, change) for share, change in votes if change != 0 and np.sign(change) == sign]
        total = sum(share for share, _ in agreeing)
        if total > 0:
            out[index] += sum(share * change for share, change in agreeing) / total
    return out


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_ties(ratio: float, density: float) -> None:
    a, b, c = random(3, (7, 9))
    wanted = ties_by_hand(a.numpy(), b.numpy(), c.numpy(), ratio, density)
    np.testing.assert_allclose(run("ties", [a, b, c], ratio, density).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("density", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["even", "waves", "few values"])
def test_ties_trims_a_large_tensor_at_the_very_number(kind: str, density: float) -> None:
    """The limit is guessed from a sample first: wrongly where the numbers come in waves as long as its steps."""
    count = 9 * SAMPLE + 5
    noise = torch.rand(count, generator=torch.Generator().manual_seed(1)) + 0.1
    waves = torch.arange(count) % 9 + noise / 10 + 1
    change = {"even": noise, "waves": waves, "few values": noise.mul(8).round() + 1}[kind]
    found = run("ties", [change, torch.zeros(count), torch.zeros(count)], 0.0, density)
    limit = torch.sort(change, descending=True).values[round(count * density) - 1]
    assert torch.equal(found, torch.where(change >= limit, change, 0.0))


def test_ties_does_not_average_what_only_one_changed() -> None:
    c = torch.zeros(4)
    a, b = torch.tensor([4.0, 0.0, 3.0, 0.1]), torch.tensor([0.0, 2.0, -1.0, 0.0])
    assert run("ties", [a, b, c], 0.5, density=0.5).tolist() == [4.0, 2.0, 3.0, 0.0]


def test_dare_keeps_the_change_on_average_and_repeats_itself() -> None:
    a, b, c = random(3, (400, 400))
    found = run("dare", [a, b, c], 0.4, density=0.3)
    assert torch.equal(found, run("dare", [a, b, c], 0.4, density=0.3))
    assert not torch.equal(found, run("dare", [a, b, c], 0.4, density=0.3, seed=4))
    change = found - c
    assert float(change.mean()) == pytest.approx(float((0.6 * (a - c) + 0.4 * (b - c)).mean()), abs=0.02)
    assert float((change == 0).float().mean()) == pytest.approx(0.7**2, abs=0.01)
    alone = run("dare", [a, b, c], 0.0, density=0.25)
    kept = alone != c
    torch.testing.assert_close((alone - c)[kept], ((a - c) / 0.25)[kept], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(run("dare", [a, b, c], 0.4, density=1.0), c + 0.6 * (a - c) + 0.4 * (b - c))


def held(**tensors: Tensor) -> Weights:
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return Weights({name: tensor.to("meta") for name, tensor in named.items()}, named.__getitem__, lambda name: None)


def test_a_large_tensor_is_merged_in_parts_to_the_same_numbers_and_keeps_its_dtype() -> None:
    a, b = random(2, (CHUNK // 100, 250))
    found = merged([held(unet__x=a.half()), held(unet__x=b.half())], Merge(FILE, ratio=0.3)).make("unet.x")
    assert found.dtype is torch.float16
    assert torch.equal(found, torch.lerp(a.half().float(), b.half().float(), 0.3).half())


def test_views_and_whole_numbers() -> None:
    a, b = random(2)
    numbers = torch.arange(3)
    found = merged([held(unet__x=a.T, unet__n=numbers), held(unet__x=b.T, unet__n=numbers + 1)], Merge(FILE, ratio=0.5))
    torch.testing.assert_close(found.make("unet.x"), (a.T + b.T) / 2)
    assert torch.equal(found.make("unet.n"), numbers)


def test_a_component_that_the_other_lacks_stays() -> None:
    a, b = random(2)
    found = merged([held(unet__x=a, vae__x=a), held(unet__x=b)], Merge(FILE, ratio=1.0))
    assert torch.equal(found.make("vae.x"), a)
    assert torch.equal(found.make("unet.x"), b)


def test_an_inpainting_model_keeps_its_own_channels() -> None:
    a = random(1, (8, 9, 3, 3))[0]
    b, c = random(2, (8, 4, 3, 3), seed=1)
    parts = [held(unet__conv_in__weight=tensor) for tensor in (a, b, c)]
    found = merged(parts, Merge(FILE, FILE, "add_difference", ratio=1.0)).make("unet.conv_in.weight")
    torch.testing.assert_close(found[:, :4], a[:, :4] + b - c)
    assert torch.equal(found[:, 4:], a[:, 4:])


def test_a_tensor_s_random_choices_depend_on_its_name_and_the_seed_alone() -> None:
    merge = Merge(FILE, FILE, "dare", seed=5)
    assert seed_of(merge, "unet.a") == seed_of(merge, "unet.a") != seed_of(merge, "unet.b")
    assert seed_of(merge, "unet.a") != seed_of(Merge(FILE, FILE, "dare", seed=6), "unet.a")
