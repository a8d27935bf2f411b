"""Names, inodes, extents, chunks, groups, volumes, sessions and users: one SQLite database behind one log."""
