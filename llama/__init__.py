"""The language trainer's rooms: text, model, engine, and a whole run."""
