"""How the four knobs are chosen: a suite of tasks, a table of finished runs, and strategies tried on the table."""
