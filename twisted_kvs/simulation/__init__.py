"""Whole clusters of real nodes on one virtual clock and one simulated network."""
