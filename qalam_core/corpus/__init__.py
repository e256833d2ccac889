"""Source files in, clean text out: reading, normalising, filtering, deduplicating, splitting."""
