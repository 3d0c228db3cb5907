"""Ways of sharing that train layers of the trunk. One module a way, all of one anatomy (`anatomy.py`)."""
