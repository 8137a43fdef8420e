"""maketune, the container side: one folder per step of the workflow, each with a step.py that does it."""

__version__ = "0.1.0"
