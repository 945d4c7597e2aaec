"""How results are shown: pages, tables, pictures and numbers in words; a classifier's mistakes."""
