"""`llama-course`: a file for each group of commands.

Each is a thin call of a library function, and its options are the fields of the dataclass that the
function takes. `cli.py` is where it begins.
"""
