"""PoE-Bridge as a sequential Monte Carlo program: properly weighted sampling from diffusion language models."""
