"""What is wrong, what would help, and whether it did."""
