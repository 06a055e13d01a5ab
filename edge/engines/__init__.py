"""Built engines, looked at: what one is made of, how two differ, which are there and which nobody needs any more."""
