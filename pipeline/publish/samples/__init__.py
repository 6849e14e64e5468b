"""Programs in the ZIP that ask the model from apps of other kinds than app.py."""
