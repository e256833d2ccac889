"""Measures a package on held-out text, and decides whether it may become champion."""
