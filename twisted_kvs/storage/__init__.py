"""Durable and in-memory storage behind one interface."""
