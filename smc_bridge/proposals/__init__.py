"""Who drafts, and the law of the draft."""
