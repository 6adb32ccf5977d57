"""Judgement of runs: measures, data sets, TREC files, significance, reports. Knows no model."""

from __future__ import annotations
