"""Tests of model tests."""
