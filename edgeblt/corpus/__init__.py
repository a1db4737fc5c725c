"""Scores of corpora: files of texts, row by row, in several processes or on a Ray cluster, into a Parquet file."""
