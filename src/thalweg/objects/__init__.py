"""State that objects of the user's carry from call to call: found, copied and put back, without running their code.

`places` finds where it lies, `values` turns it into plain values and tensors, `state` keeps track of what has changed.
"""
