"""Whether a machine and a folder can hold a sweep: one small file per family of checks, one table."""
