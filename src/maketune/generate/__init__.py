"""The generate step: complete prompts with the run's model."""
