"""Caches of what is read: decoded chunks in memory, copies of remote objects on disk, and counts.

None of them is part of what makes a run this run, and none may change what a run reads: see
``pool`` for how a cached chunk is looked at again, and ``disk`` for how a copy is.
"""
