"""Beam: PTransforms and DoFns, each a thin adapter over a pure function."""
