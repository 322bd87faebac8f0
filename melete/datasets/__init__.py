"""Data sets on disk and as rows of tokens.

files.py   JSONL files of pairs, demonstrations and labels
encode.py  text to tokens, once, with the mask of what is learnt
"""
