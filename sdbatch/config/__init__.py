"""YAML and the command line become plain resolved dictionaries. The only place that knows OmegaConf and Hydra."""
