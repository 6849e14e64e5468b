"""What people do with runs: submit, compare, estimate, free space."""
