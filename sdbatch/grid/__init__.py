"""Axes of a comparison, drawn as a labelled PNG and as a page."""
