"""Tests with containers: what users deploy, and what they do to it."""
