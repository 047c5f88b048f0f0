"""MedThink."""
