"""How a step is started: where, with what, and so that nothing of it is left behind."""
