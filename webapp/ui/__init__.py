"""What tabs are made of: parts, forms, tables, theme."""
