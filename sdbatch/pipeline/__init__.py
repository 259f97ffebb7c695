"""From cells to pictures: assemble, encode, denoise, decode. torch is imported here and below, and only when asked for."""
