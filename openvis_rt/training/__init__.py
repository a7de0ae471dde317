"""Weights that this project makes itself."""
