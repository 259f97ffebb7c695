"""Ways of enlarging what the first pass of a hires fix made, by the names users know; a network has its file's name.

Source: A1111's `latent_upscale_modes`.
"""

from __future__ import annotations

from sdbatch.cell import Enlarger

ENLARGERS: dict[str, Enlarger] = {
    enlarger.name: enlarger
    for enlarger in (
        # name                         A1111's label                   torch's interpolation
        Enlarger("latent", "Latent", "bilinear"),
        Enlarger("latent_antialiased", "Latent (antialiased)", "bilinear", antialias=True),
        Enlarger("latent_bicubic", "Latent (bicubic)", "bicubic"),
        Enlarger("latent_bicubic_antialiased", "Latent (bicubic antialiased)", "bicubic", antialias=True),
        Enlarger("latent_nearest", "Latent (nearest)", "nearest"),
        Enlarger("latent_nearest_exact", "Latent (nearest-exact)", "nearest-exact"),
        Enlarger("lanczos", "Lanczos"),
    )
}
"""Those that need no file."""
