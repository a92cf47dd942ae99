"""Plumbing of the programs, which knows nothing of the method.

The list is closed: `runtime` (progress, prefetching, elapsed time, memory) and `tables` (printing).
Admission rule: a module belongs here when both programs, or what is made from their output, need it
and it would read the same if the method were another one. Modules here import nothing else of the
repository but each other.
"""
