"""What a strategy is made of: one file for each phase, the same verbs in the same order."""
