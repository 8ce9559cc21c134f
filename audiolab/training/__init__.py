"""What every task's training and evaluation share."""
