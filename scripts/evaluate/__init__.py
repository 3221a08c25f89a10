"""The command line that scores the results of any nodule detector."""
