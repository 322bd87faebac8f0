"""A model answers: the engine that writes for many at once, OpenAI's interface, a page and the terminal."""
