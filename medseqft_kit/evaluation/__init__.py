"""Evaluation: sliding-window prediction, metrics, tables of cases, continual metrics."""
