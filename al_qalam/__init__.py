"""The application around `qalam_core`: flows, tasks and deployments, under one name of their own.
The three folders are links to those at the top of the repository. Installed under their plain names they would
shadow, or be shadowed by, the `flows` and `tasks` that most Prefect projects have.
"""
