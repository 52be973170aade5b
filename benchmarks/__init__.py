"""What filtering costs and what it saves.

Each benchmark is run in the root of the project, as in ``python -m benchmarks.images --quick``; README.md lists them.
"""
