"""What watches a group from outside: each file can be taken away, and no group notices."""
