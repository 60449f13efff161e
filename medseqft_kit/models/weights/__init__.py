"""Public weights: read safely, recognised by keys and shapes, and imported with a report of what went where."""
