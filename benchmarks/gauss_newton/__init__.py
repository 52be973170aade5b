"""Gauss-Newton: time against width and instances, and training error against CPU seconds."""
