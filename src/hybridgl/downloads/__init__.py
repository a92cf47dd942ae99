"""Downloads: what the command ``hybridgl download`` fetches, how it arrives and where it goes."""
