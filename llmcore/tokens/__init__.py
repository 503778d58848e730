"""Tokenizer training, tokenising, packing."""
