"""What local learning saves and costs: accuracy, bytes saved for backward, updates a second on several processes."""
