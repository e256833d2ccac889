"""Prefect tasks: stages of qalam_core with a policy (name, retries, tags), and no logic of their own."""
