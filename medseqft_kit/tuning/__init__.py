"""Training: one trainer, phases over it, strategies made of phases, and the loop over tasks."""
