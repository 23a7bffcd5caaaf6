"""`python -m thalweg`."""

from thalweg.cli import script

if __name__ == "__main__":
    script()
