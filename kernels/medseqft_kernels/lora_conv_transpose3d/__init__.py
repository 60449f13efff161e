"""LoRA on a frozen transposed 3D convolution."""
