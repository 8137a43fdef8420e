"""Models: loaded or new, and what is changed in them."""
