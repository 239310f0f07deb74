"""The replication core: pure, no I/O; time and randomness are arguments."""
