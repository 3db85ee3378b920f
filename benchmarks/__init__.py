"""Speed and memory beside peers; see README.md here."""
