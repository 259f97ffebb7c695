"""A coverage-guided fuzzer of every reader of weight files. By hand, for hours:

    pip install atheris
    python -m tests.fuzz.header -max_total_time=3600 [CORPUS FOLDER]

Without a corpus folder it begins with the small files of the gallery. Whatever leaves a reader but a WeightFileError of
one line that names the file, or costs more than ten seconds, stops it and is written to `crash-...` or `timeout-...`.
"""

# ruff: noqa: E402 - what the fuzzer watches is imported through it

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # not a dependency: whoever fuzzes installs it

with atheris.instrument_imports(include=["sdbatch"]):
    from sdbatch.errors import WeightFileError
    from sdbatch.weights.identify import identify

from tests.weights import dialects as d
from tests.weights.hostile import gallery
from tests.weights.writer import write_safetensors

SMALL_BYTES = 20_000
SCRATCH = Path(tempfile.mkdtemp(prefix="sdbatch-fuzz-"))
SUFFIXES = (".safetensors", ".pt")


def one_input(data: bytes) -> None:
    """Read the bytes under both names that readers tell apart."""
    for suffix in SUFFIXES:
        path = SCRATCH / f"x{suffix}"
        path.write_bytes(data)
        try:
            identify(path)
        except WeightFileError as error:
            if not str(error).startswith(str(path)) or "\n" in str(error):
                raise AssertionError(str(error)) from error


def write_corpus(folder: Path) -> None:
    """The gallery's small files and a good file of several kinds."""
    for name, make in gallery(SCRATCH / "marker").items():
        path = folder / name
        make(path)
        if path.stat().st_size > SMALL_BYTES:
            path.unlink()
    for name, tensors in {"lora": d.kohya(d.unet_modules(8), 1), "vae": d.diffusers_vae(), "word": {"emb_params": (1, 32)}}.items():
        small = {key: tuple(min(side, 8) for side in shape) if len(shape) > 2 else shape for key, shape in tensors.items()}
        write_safetensors(folder / f"{name}.safetensors", small, metadata={"ss_tag_frequency": '{"a": {"b": 3}}'})


def main() -> None:
    """Hand over to the fuzzer; its options are libFuzzer's."""
    given: list[Any] = list(sys.argv)
    if all(word.startswith("-") for word in given[1:]):
        corpus = SCRATCH / "corpus"
        corpus.mkdir()
        write_corpus(corpus)
        given.append(str(corpus))
    atheris.Setup([*given, "-timeout=10", "-rss_limit_mb=1500", f"-max_len={SMALL_BYTES}"], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
