"""The three laws of the program: proposal, intermediate, target."""
