"""Helpers shared by tests. Tests import from here and never from each other."""
