"""A dataset: what kind of file it is, its rows, how long they are, how they are split."""
