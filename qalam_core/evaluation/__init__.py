"""A package and held-out text in, figures and a verdict out."""
