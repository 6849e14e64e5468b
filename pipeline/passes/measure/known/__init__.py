"""What earlier evaluations of the same files measured, so that another one measures only what is new."""
