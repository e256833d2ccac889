"""Figures in, text for people out: the model card, the Markdown report, the HTML page."""
