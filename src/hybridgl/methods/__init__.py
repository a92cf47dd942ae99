"""The methods: each scores the proposals of an image for its expressions, and chooses one."""
