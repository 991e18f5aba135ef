"""The shared language of Cuvee: rows, chat, loss, errors, names and protocols. Imports nothing of ours, and no Ray."""

__version__ = "0.1.0"
