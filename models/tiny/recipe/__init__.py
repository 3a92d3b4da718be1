"""The recipe of the embedded model: its text, its tokenizer and its training, each in a file of its own."""
