"""The bench verb: what this project does on this machine beside the usual scripts."""
