"""Packs: images of one size as uint8 files that are opened at once."""
