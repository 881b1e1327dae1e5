"""A run's course: what is prepared, in which order steps are taken, what is written and when. The computation is a stack's."""
