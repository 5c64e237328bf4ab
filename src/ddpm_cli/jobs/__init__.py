"""What each command does once its options are known; a job has the name of its door in cli/."""
