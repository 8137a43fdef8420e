"""The host side: decides where a step can run, and runs it there. Standard library only, Python 3.8 and later."""
