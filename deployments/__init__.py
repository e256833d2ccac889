"""Where and when builds run: recipes, and Prefect deployment definitions. Data, no code."""
