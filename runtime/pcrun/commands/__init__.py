"""The job behind each command of `pcrun`, and what the three command lines share."""
