"""Training of the bundled weights of the shapes world."""
