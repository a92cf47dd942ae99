"""Weights: where they are, where they come from, and the small ones that the package bundles."""
