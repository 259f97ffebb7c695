"""Processes and devices: prepare a run, supervise workers, make images."""
