"""maketune, the container side: one folder per step of the workflow, each with a step.py that does it."""
