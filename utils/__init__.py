"""Plumbing of the two programs, which knows nothing of the method.

The list is closed: `store` (artefacts on disk), `records` (rows and summary of a run), `runtime`
(exit status, one-line errors, time, memory) and `tables` (printing). Admission rule: a module
belongs here when both programs, or what is made from their output, need it and it would read the
same if the method were another one. Whatever knows of masks, text or models belongs to `hybridgl`;
whatever knows of a dataset belongs to `refer`. Modules here import nothing else of the repository
but each other.
"""
