"""Foundation models: architectures, weights, precision."""
