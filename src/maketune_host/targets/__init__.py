"""What each make target does; table.py says where."""
