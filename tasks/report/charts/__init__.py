"""Plotly figures of the report: one function per chart, each returning None when there is nothing to draw."""
