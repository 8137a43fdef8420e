"""maketune, the container side: one module a step of the workflow."""

__version__ = "0.1.0"
