"""Tests of the replication core, one module for each of its own."""
