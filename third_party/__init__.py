"""Other people's systems: what the suite compares with or takes input from."""
