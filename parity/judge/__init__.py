"""Bounds, verdicts, and the controls that show that a verdict can be red."""
