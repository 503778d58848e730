"""The transformer, and its Hugging Face form."""
