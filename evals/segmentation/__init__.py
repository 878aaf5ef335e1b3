"""Referring segmentation with CLIPSeg: `python -m evals.segmentation`."""
