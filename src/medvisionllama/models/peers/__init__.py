"""Rivals: networks that others published, for comparison on equal terms (SPEC 10)."""
