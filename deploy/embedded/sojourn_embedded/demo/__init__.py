"""`make demo`: the whole story on a throw-away stack. Its people and its stack drive the tests of the whole too."""
