"""A run's models for others to load: PEFT adapters, MONAI bundles, ONNX, and PyTorch alone."""
