"""The most similar keys of each query, by cosine."""
