"""What both sides must agree on. Standard library alone, Python 3.8; imports nothing of either side."""
