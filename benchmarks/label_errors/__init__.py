"""Whether a run's training dynamics find wrong labels, beside out-of-sample probabilities and cleanlab's scores."""
