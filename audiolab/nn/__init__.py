"""Modules that more than one task uses."""
