"""Names of the figures that every run logs; whoever reads logs needs them without torch."""

PREFIX = "autoassist/"
# What every metric can be plotted against.
AXES = ("optimizer_steps", "instances_seen", "seconds")
