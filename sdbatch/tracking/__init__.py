"""The projection of rows into MLflow, and the way back from a run to its rows and images."""
