"""The data step: texts checked, split and made into tokens."""
