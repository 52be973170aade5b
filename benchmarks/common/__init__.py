"""What the benchmarks share: plans, runs, rows of results, tables of accuracies, and data from Debian packages."""
