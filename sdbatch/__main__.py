"""`python -m sdbatch`."""

from sdbatch.cli import console

console()
