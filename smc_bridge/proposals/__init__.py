"""Proposals: what drafts the tokens of a block, and the law of the draft."""
