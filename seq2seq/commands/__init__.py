"""The commands of the command line, a file for each family. `seq2seq.cli` makes one program of them.

A command imports what needs TensorFlow inside its function, so that `--help` does not wait for it.
"""
