"""Programs that make what the library carries, and that check it against folders of results."""
