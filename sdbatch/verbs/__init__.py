"""One short module per verb, each with `main(arguments) -> exit code`."""
