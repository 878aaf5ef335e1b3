"""Referring segmentation with CLIPSeg; the door is `python -m evals.segmentation`."""
