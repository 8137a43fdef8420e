"""The monitor verb."""
