"""What a run tells of itself: metrics, loggers, counts."""
