"""Tests of the stores: one contract for all, and what each promises alone."""
