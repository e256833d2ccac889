"""Tests of a model: cases from files, their outcomes, and what the gate makes of them. See docs/testing.md."""
