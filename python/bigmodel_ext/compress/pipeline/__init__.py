"""One call for everything: the steps, what they share, and how each is done."""
