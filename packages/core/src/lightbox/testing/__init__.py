"""Helpers for tests only; nothing else may import this package."""
