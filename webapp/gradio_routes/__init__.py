"""What of Gradio is open to requests: its page, its routes, and events that wait."""
