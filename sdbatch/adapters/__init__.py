"""What is added to a model and taken away again without a trace: LoRA, textual-inversion embeddings, ControlNet."""
