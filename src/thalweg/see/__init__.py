"""What a person sees: charts, the report, the terminal."""
