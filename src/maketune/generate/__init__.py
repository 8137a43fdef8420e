"""The generate step: prompts completed."""
