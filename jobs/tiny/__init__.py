"""Recipe of the embedded `tiny` model family: data, training, export, evaluation (tooling, not runtime)."""
