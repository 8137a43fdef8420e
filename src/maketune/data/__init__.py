"""The data step: check the texts, split them, turn them into tokens."""
