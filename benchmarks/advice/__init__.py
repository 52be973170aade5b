"""Whether what a run says of its own data comes true."""
