"""What the numbers of README, RESULTS and TUTORIAL come from: one command each."""
