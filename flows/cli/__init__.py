"""The command line `qalam`: one module a group of commands."""
