"""What is needed of Lightning's and torch's insides."""
