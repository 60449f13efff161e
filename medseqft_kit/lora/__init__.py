"""LoRA adapters: inject into a frozen backbone, merge, save and load in PEFT's format."""
