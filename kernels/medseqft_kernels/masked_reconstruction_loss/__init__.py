"""Reconstruction error of the masked voxels, one number per sample."""
