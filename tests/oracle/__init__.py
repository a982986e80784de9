"""Oracles in plain numpy that share no code with the library."""
