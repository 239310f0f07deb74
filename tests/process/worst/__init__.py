"""The worst days of a node: kill -9, power cuts, too much of everything, full disks."""
