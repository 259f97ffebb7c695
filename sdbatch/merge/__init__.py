"""Weight files made from weight files: merging, baking and conversion, tensor by tensor. The tables import no torch."""
