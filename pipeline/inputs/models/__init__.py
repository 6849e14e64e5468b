"""A base model: where it comes from, its architecture, its license, what its config lacks."""
