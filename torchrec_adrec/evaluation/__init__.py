"""Evaluation: metrics of predictions and of ranked lists on held-out rows."""
