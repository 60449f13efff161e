"""Data sets on disk: what a task is, one reader for each layout, the split, and the check."""
