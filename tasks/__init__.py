"""Prefect tasks: each is one stage of qalam_core plus policy (name, retries, tags), and no logic.
Takes what the stage takes, with the store as a path; gives the stage's artifact, shown as Cached when it
was reused.
It does not know the order of the stages; flows/ does.
"""
