"""Self-supervised, segmentation and distillation losses, pure functions first."""
