"""The checks of the exercises in notebooks/exercises, a file a notebook: an answer is right, or `checking.Wrong`."""
