"""What the Lab's form has for the evaluate stage alone."""
