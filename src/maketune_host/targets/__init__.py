"""What each target of the Makefile does."""
