"""Stable Diffusion sweeps as configuration: plan, make, record and compare images."""

__version__ = "0.1.0"
