"""A model that is served to other programs, from the page."""
