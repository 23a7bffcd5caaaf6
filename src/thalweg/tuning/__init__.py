"""Tuning: the four knobs, chosen on evidence."""
