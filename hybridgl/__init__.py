"""HybridGL."""
