"""Files that are not the lab's JSON lines: read, recognised, and made into these by a process of its own."""
