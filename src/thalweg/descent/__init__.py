"""The descent: the training loop, and the parts that it calls."""
