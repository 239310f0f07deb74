"""Few tests with real processes on loopback; ``KVS_PROCESS_TESTS=1`` turns them on."""
