"""Packages for distribution: wheels and signatures."""
