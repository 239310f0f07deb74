"""
The rules of our house style that a machine can check, as functions over source files.

Invariant: a rule depends on nothing but the sources that it is given, so each can be
shown a small snippet that it must find fault with (``tests/test_tidy.py``).
"""
