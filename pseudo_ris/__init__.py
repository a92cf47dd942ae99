"""Pseudo-RIS: referring annotations from images alone, without anybody who writes or draws.

Masks of an image are cropped, captioned and kept where a caption singles its object out.

Source: Yu et al., "Pseudo-RIS: Distinctive Pseudo-supervision Generation for Referring Image
Segmentation" (ECCV 2024, arXiv 2407.07412).
"""
