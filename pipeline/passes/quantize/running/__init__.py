"""Running the layers of a model one at a time, in little memory and time."""
