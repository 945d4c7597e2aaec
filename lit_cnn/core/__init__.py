"""What everything else stands on: errors, files, randomness, precision, words. Imports nothing else of lit_cnn."""
