"""Tests with real processes, ports and time: few, and a step of their own."""
