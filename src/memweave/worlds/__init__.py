"""Readers of public data sets and generators of tasks with hidden truth."""
