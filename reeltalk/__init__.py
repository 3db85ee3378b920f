"""reeltalk: recommends the video and the talk under it."""

__version__ = "0.1.0"
