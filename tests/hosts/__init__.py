"""
Tests with nodes on hosts of their own; ``KVS_HOST_TESTS=1`` turns them on.

Each node is a process in a network namespace with its own address, real sockets and a
real disk.  It takes root (or what lets one make namespaces), iproute2 and nftables;
where something is missing the tests say what and are skipped, and fail with
``KVS_HOST_TESTS=required``.
"""
