"""Parts of the command line: argument parsing with one-line errors, and the `decode` command."""
