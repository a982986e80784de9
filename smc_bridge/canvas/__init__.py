"""Canvases: masked places that a diffusion model fills a few per forward, under a rule."""
