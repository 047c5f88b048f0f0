"""Studies of the core itself: claims without a paper, decided as those of a paper are."""
