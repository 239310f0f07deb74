"""A distributed, always available, eventually consistent key-value store."""
