"""Modules and losses of other packages: what changes, what is filtered, and whether captured losses are right."""
