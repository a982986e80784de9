"""Inference kernels: rejection to the intermediate, importance to the target."""
