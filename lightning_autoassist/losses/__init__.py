"""The mathematics of torch's losses, without any Trainer."""
