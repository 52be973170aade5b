"""Distance of a linear SVM to its minimum against gradient evaluations."""
