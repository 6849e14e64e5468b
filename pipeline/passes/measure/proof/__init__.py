"""Which files an evaluation was made with, and whether the base is unchanged once the adapter is off."""
