"""One tab a file: handlers first, then the layout, then the wiring. Tabs meet only in the store."""
