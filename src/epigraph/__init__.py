"""Text in images: representation-learning methods as Hugging Face models."""
