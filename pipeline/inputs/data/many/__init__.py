"""What is noted of each row of a dataset, in memory that does not grow with it: the rest is on disk."""
