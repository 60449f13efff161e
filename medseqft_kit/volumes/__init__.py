"""Preprocessing, the on-disk store, crops, augmentation and batches."""
