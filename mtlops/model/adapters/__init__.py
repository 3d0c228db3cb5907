"""Adapters: small trainable parts inside a frozen trunk. One module a kind, all of one anatomy.

A kind is a class with two functions and no state of its own:

    init(hidden, params, generator) -> the tensors of one layer of one task, by name
    apply(sum, norm, bank)          -> the layer's output, given its pre-norm sum f + x, its layer norm,
                                       and those tensors picked per row: each (P, ...)

so that the same lines serve training (a few tasks a batch) and the exported graph (any task a row).
"""
