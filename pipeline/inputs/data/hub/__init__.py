"""Datasets of the Hugging Face Hub: how one is named, which of its files are rows, and fetching these."""
