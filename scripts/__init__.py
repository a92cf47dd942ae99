"""Programs that make what the library bundles, and that check it against folders of results."""
