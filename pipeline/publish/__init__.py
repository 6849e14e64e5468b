"""Where a result goes. A new target is one file here and one line in `targets`."""
