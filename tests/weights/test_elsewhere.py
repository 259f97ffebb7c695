"""A name of another kind's file: what it is, and how it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdbatch.config.compose import Composer
from sdbatch.errors import ConfigError
from sdbatch.weights.catalog import Catalog
from sdbatch.weights.elsewhere import tell_elsewhere
from tests.weights import dialects as d
from tests.weights.writer import write_safetensors


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    write_safetensors(tmp_path / "embeddings" / "Easy.safetensors", {"emb_params": (2, 768)})
    write_safetensors(tmp_path / "embeddings" / "lost.safetensors", d.kohya(d.unet_modules(768)))
    write_safetensors(tmp_path / "vae" / "soft.safetensors", d.diffusers_vae())
    write_safetensors(tmp_path / "text_encoders" / "t5.safetensors", d.t5())
    write_safetensors(tmp_path / "loras" / "redux.safetensors", {"redux_up.weight": (1, 1)})
    for name in ("checkpoints/flux-Q4.gguf", "loras/half.safetensors.part", "embeddings/broken.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"GGUF" + bytes(60))
    return Catalog([tmp_path])


@pytest.mark.parametrize(
    ("group", "asked", "told"),
    [
        ("lora", "Easy", "Easy.safetensors is an embedding for SD 1.x (768-wide tokens): use 'embedding=[Easy]'."),
        ("lora", "Easy.safetensors", "use 'embedding=[Easy]'."),
        ("lora", "soft", "soft.safetensors is a VAE (4 latent channels): use vae=soft."),
        ("lora", "lost", "is a LoRA for SD 1.x (768-wide cross-attention), but it lies in "),
        ("checkpoint", "redux", "redux.safetensors is a style model (Redux), in "),
        ("checkpoint", "flux-Q4", "flux-Q4.gguf is a GGUF file, which sdbatch does not read; use its .safetensors version."),
        ("checkpoint", "flux-Q4.gguf", "is a GGUF file"),
        ("lora", "half.safetensors", "half.safetensors.part is a download that is not complete; finish it."),
        ("lora", "broken", "broken.pt: is a GGUF file"),
        ("vae", "t5", "use text_encoder=t5."),
        ("text_encoder_2", "t5", ""),
        ("lora", "nothing", ""),
    ],
)
def test_what_is_told(catalog: Catalog, group: str, asked: str, told: str) -> None:
    found = tell_elsewhere(catalog, group, asked)
    assert told in found
    assert bool(told) == bool(found)


def test_an_option_of_another_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_safetensors(tmp_path / "models" / "embeddings" / "Easy.safetensors", {"emb_params": (2, 768)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"lora=Easy: there is no such lora\. Easy\.safetensors is an embedding .*: use 'embedding="):
        Composer().compose(["lora=[Easy]"])
