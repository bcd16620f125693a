"""Composition: a package a job: what is asked, what will run, the graph."""
