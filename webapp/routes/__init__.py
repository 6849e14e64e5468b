"""What the page's scripts ask by GET and POST; one file a subject."""
