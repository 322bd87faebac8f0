"""Data sets on disk and as rows of tokens.

tables.py   JSONL, JSON, CSV, TSV, Parquet and directories of `datasets` as rows of columns
formats.py  the forms in which people keep conversations and preferences, told by their columns
files.py    files of pairs, demonstrations and labels, read in any form and written in ours
prompts.py  what is asked, without what is answered
encode.py   text to tokens, once, with the mask of what is learnt
lengths.py  rows that are longer than a model reads
checks.py   what there is to say about a data set before anything is trained on it
"""
