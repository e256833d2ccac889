"""Two packages and texts -> what changed between two models, and which changes a person should look at."""
