"""The shapes world: a synthetic referring-expression dataset, made from a seed alone."""
