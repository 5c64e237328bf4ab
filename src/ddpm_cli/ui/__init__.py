"""The screen: messages and progress on stderr, and pictures made for people."""
