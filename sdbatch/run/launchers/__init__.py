"""Handing a planned sweep to an engine: one short file for each."""
