"""The page: a FastAPI app with Gradio Blocks in it. It reads the store, queues runs, and owns no process."""
