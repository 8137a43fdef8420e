"""The report step, and the model card."""
