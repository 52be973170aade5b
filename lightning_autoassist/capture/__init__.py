"""What a training step computed: losses by instance."""
