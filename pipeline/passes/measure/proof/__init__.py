"""Which files an evaluation was made with, and whether taking the adapter off leaves the base as it was."""
