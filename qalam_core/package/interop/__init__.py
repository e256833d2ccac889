"""Packages from and to other formats."""
