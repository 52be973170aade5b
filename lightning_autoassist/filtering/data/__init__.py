"""The data module, and the loaders whose batches carry what is known of their instances."""
