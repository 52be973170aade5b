"""AutoAssist: the callback, the data module, and everything between them."""
