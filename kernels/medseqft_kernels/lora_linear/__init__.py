"""LoRA on a frozen linear layer."""
