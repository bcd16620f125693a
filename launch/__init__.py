"""Edges: the command line and the runner options."""
