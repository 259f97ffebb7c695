"""From configurations to a table with one row per image. Pure: no torch, no processes, no writes but the plan."""
