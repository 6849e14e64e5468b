"""Bytes to and from the storage of a workspace."""
