"""What both sides must agree on. Standard library alone, Python 3.8; imports nothing of either side."""

__version__ = "0.2.0"
