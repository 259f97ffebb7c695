"""Weight files: where they lie, what they are called, what is inside them. No torch, and nothing of a file is executed."""
