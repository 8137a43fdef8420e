"""maketune, the container side: one module a step of the workflow."""
