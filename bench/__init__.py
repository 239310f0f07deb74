"""Measures a node and a cluster, in real processes; see ``bench/README.md``."""
