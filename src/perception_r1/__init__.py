"""Perception-R1: post-train vision-language models to see better, with rewards from physical truth (arXiv 2504.07954)."""

__version__ = "0.1.0"
