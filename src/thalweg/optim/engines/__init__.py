"""Engines: each runs any rule's equation over all parameters of a step."""
