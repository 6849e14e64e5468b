"""The page: a FastAPI app with Gradio Blocks in it. It reads the store and queues runs."""
