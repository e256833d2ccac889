"""Changes to a package: single rows, sealing, and the difference between two packages."""
