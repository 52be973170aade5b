"""Names of the figures that every run logs; whoever reads logs needs them without torch."""

PREFIX = "autoassist/"
# What every metric can be plotted against.
AXES = ("boss_updates", "instances_seen", "seconds")
