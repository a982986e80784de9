"""Tests of the probabilistic program."""
