"""What answers are worth: backends that make them, metrics with intervals, runs over a file, and reports."""
