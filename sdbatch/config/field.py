"""Fields of the schema."""

from dataclasses import field
from typing import Any


def beside(default: Any) -> Any:
    """A field that says how or where, not what: it does not change the image, so it is not part of its identity."""
    if callable(default):
        return field(default_factory=default, metadata={"identity": False})
    return field(default=default, metadata={"identity": False})
