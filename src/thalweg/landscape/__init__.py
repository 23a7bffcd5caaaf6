"""Figures of the loss surface: a model and a batch in, numbers out."""
