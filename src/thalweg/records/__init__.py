"""The nouns: task, plan, run, history, checkpoint, diagnosis, each with its file."""
