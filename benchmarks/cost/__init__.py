"""What filtering costs: milliseconds of a step, memory against the number of instances, and seconds of whole runs."""
