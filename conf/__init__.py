"""The packaged configuration groups."""
