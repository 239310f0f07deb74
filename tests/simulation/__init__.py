"""Whole histories: replicas and nodes under every fault that the network can have."""
