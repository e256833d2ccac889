"""Joins the wings to the store: one file a stage, and their order in build.py."""
