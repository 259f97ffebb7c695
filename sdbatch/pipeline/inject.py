"""Vectors in the place of words: what a text encoder is given where an embedding is called.

A hook on the table of words, which leaves the tokenizer and the weights as they were.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Place = tuple[int, int, Tensor]
"""Row, token and the vector [C] that takes its place."""


class Injector:
    """Puts vectors into what a text encoder's table of words returns, while it is told to."""

    def __init__(self, table: nn.Module) -> None:
        self.table = table
        self._places: Sequence[Place] = ()
        self._handle = self.table.register_forward_hook(self._replace)

    @contextmanager
    def inject(self, places: Sequence[Place]) -> Generator[None]:
        """Do so within."""
        self._places = places
        try:
            yield
        finally:
            self._places = ()

    def detach(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _replace(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, args
        if not self._places:
            return output
        output = output.clone()
        for row, at, vector in self._places:
            output[row, at] = vector.to(output)
        return output
