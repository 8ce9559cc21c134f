"""Tables, plots and score files."""
