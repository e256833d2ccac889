"""Data files: recipes, and the definitions of the Prefect deployments."""
