"""Hard sharing: one trunk for all tasks, whose top layers are trained on all of them."""

from mtlops.model.sharing.anatomy import Sharing


class Hard(Sharing):
    """Every task goes through the same layers; only heads differ.

    Source: Caruana 1997, "Multitask Learning", section 1.
    """
