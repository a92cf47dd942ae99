"""The models that the method stands on: one module per foreign package."""
