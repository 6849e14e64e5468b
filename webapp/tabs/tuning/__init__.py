"""The Tune tab: many runs from one form."""
