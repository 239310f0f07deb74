"""The HTTP edge: Klein resources for clients and for peers."""
