"""Composition: the order in which tasks run, and the command line that starts them.
Takes recipes, gives runs.
It does not know how any step works.
"""
