"""Evaluation: a table of comparisons first (`table`), every figure from it (`figures`), beside `shortcuts`."""
