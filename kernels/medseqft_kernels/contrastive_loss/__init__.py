"""Per-sample contrastive loss (NT-Xent) of two views."""
