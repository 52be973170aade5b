"""K-FAC against SGD and AdamW at tuned learning rates: how many updates and seconds until what these reach."""
