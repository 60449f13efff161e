"""LoRA on a frozen 3D convolution."""
