"""The command line `qalam`: one module per group of commands."""
