"""BLEU of a small Transformer from English to German against the updates and the seconds it got."""
