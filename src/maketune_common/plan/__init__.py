"""The plan of a run before it runs: does it fit, how long, is it worth it."""
