"""The machine: files, locks, memory, processes of our own, the terminal."""
