"""The eval step: how well a model predicts texts."""
