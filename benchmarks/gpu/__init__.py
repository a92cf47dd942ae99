"""One command that proves CUDA; see ``benchmarks/gpu/__main__.py``."""
