"""Pictures of strangers, to start from or to be guided by: refused before anything runs, or read as they are seen."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdbatch.errors import SdbatchError
from sdbatch.weights.picture import open_picture, read_size
from tests.planning import plan_of


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, pixels: bytes = b"") -> bytes:
    """A grey PNG that says it is so large, whatever its pixels are."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


NOISE = Image.effect_noise((64, 64), 80).convert("RGB")
HOSTILE = {
    "a bomb of 10 gigapixels": (png(100_000, 100_000, pixels=b"\0" * 1_000_000), "pixels"),
    "a bomb of 144 megapixels": (png(12_000, 12_000, pixels=b"\0" * 12_001 * 12_000), "12000x12000 pixels, and at most 100 million"),
    "a bomb of text": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 100_000_000, 9)), pixels=b"\0" * 72), "."),
    "cut off": (saved(NOISE, "PNG")[:-2000], "."),
    "without an end": (saved(NOISE, "PNG")[:-12], "."),
    "a cut off photograph": (saved(NOISE, "JPEG")[:-1500], "truncated"),
    "empty": (b"", "cannot identify"),
    "a web page": (b"<html>log in</html>", "cannot identify"),
    "a pickle": (b"\x80\x04cos\nsystem\n.", "cannot identify"),
    "32 bits": (saved(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "32 bits a channel"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_is_no_picture_is_refused_before_anything_runs_and_takes_no_memory(name: str, workspace: Path) -> None:
    data, said = HOSTILE[name]
    (workspace / "given.png").write_bytes(data)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SdbatchError, match=rf"(?s)given\.png: it is no picture that can be read \(.*{said}"):
        plan_of("task=img2img", "task.image=given.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 150_000
    if name not in ("cut off", "without an end"):  # of a PNG all chunks are checked before, and the pixels that are there are read
        with pytest.raises(ValueError, match=said):
            open_picture(workspace / "given.png")


TURNED = Image.Exif()
TURNED[0x0112] = 6
GREY = Image.new("L", (24, 16), 128)
SEEN = {
    "GIF": saved(GREY, "GIF", save_all=True, append_images=[Image.new("L", (24, 16), 0)]),
    "CMYK": saved(Image.new("CMYK", (24, 16), (0, 0, 0, 127)), "JPEG"),
    "16 bits": saved(Image.fromarray(np.full((16, 24), 0x8012, np.uint16)), "PNG"),
    "16 bits of a TIFF": saved(Image.fromarray(np.full((16, 24), 0x8012, np.uint16)), "TIFF"),
    "palette": saved(GREY.convert("P"), "PNG"),
    "a turned photograph": saved(GREY.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=TURNED),
    "a turned PNG": saved(GREY.transpose(Image.Transpose.ROTATE_90), "PNG", exif=TURNED),
    "a turned PNG of 16 bits": saved(Image.fromarray(np.full((24, 16), 0x8012, np.uint16)), "PNG", exif=TURNED),
}


@pytest.mark.parametrize("name", list(SEEN))
def test_a_picture_is_read_as_it_is_seen_whatever_its_format(name: str, tmp_path: Path) -> None:
    """Pillow makes white of most 16-bit pictures, and depth maps are such."""
    (tmp_path / "given").write_bytes(SEEN[name])
    picture = open_picture(tmp_path / "given").convert("RGB")
    assert read_size(tmp_path / "given") == picture.size == (24, 16)
    assert np.abs(np.asarray(picture).astype(int) - 128).max() <= 2
