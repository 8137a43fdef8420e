"""Models: fetching, loading and adapting them."""
