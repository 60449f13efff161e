"""The run folder: atomic writes, manifest, lock."""
